"""The problems of a data set that its images alone show."""

import filecmp
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtail.data.check.near_copies import SIDE, NearCopies, near_copies, num_tiles
from longtail.data.check.reading import ImageFacts
from longtail.data.copies import AllImages, first_equal
from longtail.utils.console import with_bar

MIN_TRAIN, MIN_TEST = 5, 3
"""A class with fewer training or test images has few images"""

BLANK_RANGE = 8
"""A blank image: no channel of its thumbnail varies by more levels, of 256"""

OUTLIER = 4.0
"""An image of unusual size: its side (root of the area) is so many times the median one, or the reverse"""

KINDS = {
    "unreadable": "does not decode",
    "blank": "nearly one colour",
    "tiny": "smaller side below the limit",
    "unusual size": f"side over {OUTLIER:g} times the median one, or below its {1 / OUTLIER:g} part",
    "few images": f"class with fewer than {MIN_TRAIN} training or {MIN_TEST} test images",
    "copy, two splits": "same pixels as an image of another split",
    "copy, two labels": "same pixels as an image with another label",
    "copy": "same pixels as an image of the same split and class",
    "near copy, two splits": "as a copy, but encoded again, resized or slightly cropped",
    "near copy, two labels": "as a copy, but encoded again, resized or slightly cropped",
    "near copy": "as a copy, but encoded again, resized or slightly cropped",
    "likely wrong label": "a trained model holds the image for another class",
}
"""Kinds of findings in the order of the report, and what they mean"""


class Finding(NamedTuple):
    """A problem of an image or a class."""

    kind: str
    """One of `KINDS`"""
    image: str
    """Path from data.root; for decoded images split and position, such as test[7]; empty for a class"""
    class_name: str
    split: str
    """train, val or test; empty for a class"""
    original: str = ""
    """The image that this one is a copy of"""
    detail: str = ""


def make_finding(images: AllImages, kind: str, position: int, original: int | None = None, detail: str = "") -> Finding:
    """Returns a finding about an image, by its position among all."""
    class_name = images.dataset.class_names[images.labels[position]]
    split = list(images.dataset.splits)[images.splits[position]]
    return Finding(
        kind, images.names[position], class_name, split, "" if original is None else images.names[original], detail
    )


class ImageChecks:
    """Checks images.

    Args:
        images: of all splits.
        facts: about each of them, see `longtail.data.check.reading.read_images`.
        min_side: images whose smaller side has fewer pixels are tiny.
    """

    def __init__(self, images: AllImages, facts: Sequence[ImageFacts | str], min_side: int):
        self.images, self.finding = images, partial(make_finding, images)
        self.facts, self.min_side = facts, min_side
        self.readable = np.array([k for k, image in enumerate(facts) if isinstance(image, ImageFacts)], dtype=np.int64)
        self.decoded = [image for image in facts if isinstance(image, ImageFacts)]
        """Facts about the readable images"""

    def findings(self) -> Iterator[Finding]:
        """Yields everything that is wrong, in the order of `KINDS`."""
        for position, reason in enumerate(self.facts):
            if isinstance(reason, str):
                yield self.finding("unreadable", position, detail=reason)
        for position in self.readable[self._is_blank]:
            yield self.finding("blank", position)
        yield from self._sizes()
        yield from self._few_images()
        yield from self._copies()

    def summary(self) -> list[str]:
        """Number and sizes of the images, one line each."""
        dataset = self.images.dataset
        numbers = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
        lines = [f"{numbers} images in {dataset.num_classes:,} classes"]
        if self.decoded:
            order = np.argsort(self._areas, kind="stable")
            smallest, median, largest = (self._size(order[k]) for k in (0, len(order) // 2, -1))
            lines.append(f"smallest {smallest}, median {median}, largest {largest} pixels")
        return lines

    def _size(self, row: np.integer[Any]) -> str:
        return f"{self.decoded[row].width} x {self.decoded[row].height}"

    @cached_property
    def _smaller_sides(self) -> NDArray[np.int64]:
        return np.array([min(image.width, image.height) for image in self.decoded], dtype=np.int64)

    @cached_property
    def _areas(self) -> NDArray[np.int64]:
        return np.array([image.width * image.height for image in self.decoded], dtype=np.int64)

    @cached_property
    def _thumbnails(self) -> NDArray[np.uint8]:
        return (
            np.stack([image.thumbnail for image in self.decoded])
            if self.decoded
            else np.empty((0, SIDE, SIDE, 3), "uint8")
        )

    @cached_property
    def _is_blank(self) -> NDArray[np.bool_]:
        ranges = np.ptp(self._thumbnails, axis=(1, 2)).max(axis=1)
        return np.asarray(ranges <= BLANK_RANGE)

    def _sizes(self) -> Iterator[Finding]:
        if self.images.paths is None:  # all of one size
            return
        for row in np.flatnonzero(self._smaller_sides < self.min_side):
            yield self.finding("tiny", self.readable[row], detail=f"{self._size(row)} pixels")
        sides = np.sqrt(self._areas)
        ratios = sides / np.median(sides) if len(sides) else sides
        for row in np.flatnonzero((ratios > OUTLIER) | (ratios < 1 / OUTLIER)):
            yield self.finding("unusual size", self.readable[row], detail=f"{self._size(row)} pixels")

    def _few_images(self) -> Iterator[Finding]:
        dataset = self.images.dataset
        test_counts = np.bincount(dataset.test.labels, minlength=dataset.num_classes)
        for name, train, test in zip(dataset.class_names, dataset.class_counts, test_counts, strict=True):
            if train < MIN_TRAIN or test < MIN_TEST:
                yield Finding("few images", "", name, "", detail=f"{train} for training, {test} for testing")

    def _copies(self) -> Iterator[Finding]:
        # Blank images are all alike. They are reported as blank.
        rows = np.flatnonzero(~self._is_blank)
        first = first_equal([self.decoded[row].digest for row in rows])
        is_copy = first != np.arange(len(first))
        positions = self.readable[rows]
        exact = NearCopies(positions[first[is_copy]], positions[is_copy], np.ones(int(is_copy.sum()), np.float32))
        yield from self._pairs("copy", [exact])
        # A thumbnail of a smaller image shows too little.
        distinct = np.flatnonzero(~is_copy & (self._smaller_sides[rows] >= SIDE))
        tiles = near_copies(self._thumbnails[rows[distinct]])
        bar = with_bar(tiles, "comparing images", num_tiles(len(distinct)))
        yield from self._pairs("near copy", (
            NearCopies(positions[distinct[pairs.first]], positions[distinct[pairs.second]], pairs.correlation)
            for pairs in bar
        ))  # fmt: skip

    def _pairs(self, kind: str, pairs: "Iterator[NearCopies] | list[NearCopies]") -> Iterator[Finding]:
        """Yields for each image the most similar earlier image of another split, with another label, and of its own."""
        splits, labels = self.images.splits, self.images.labels
        closest: dict[str, NearCopies] = {}
        for tile in pairs:
            two_splits = splits[tile.first] != splits[tile.second]
            two_labels = labels[tile.first] != labels[tile.second]
            masks = {", two splits": two_splits, ", two labels": two_labels, "": ~two_splits & ~two_labels}
            for relation, mask in masks.items():
                parts = [closest[relation]] if relation in closest else []
                parts.append(NearCopies(*(part[mask] for part in tile)))
                closest[relation] = _closest(parts)
        for relation, found in closest.items():
            for first, second, correlation in zip(*found, strict=True):
                detail = f"similarity {correlation:.3f}" if kind == "near copy" else self._same(first, second)
                if "labels" in relation:
                    detail += f", {self.images.dataset.class_names[labels[first]]}"
                if "splits" in relation:
                    detail += f", {list(self.images.dataset.splits)[splits[first]]}"
                yield self.finding(kind + relation, second, first, detail)

    def _same(self, first: int, second: int) -> str:
        paths = self.images.paths
        if paths is None:
            return "same pixels"
        if paths[first] == paths[second]:
            return "same file, listed twice"
        return "same bytes" if filecmp.cmp(paths[first], paths[second], shallow=False) else "same pixels"


def _closest(parts: Sequence[NearCopies]) -> NearCopies:
    """Returns of all pairs the most similar one of each second image."""
    first, second, correlation = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((first, -correlation, second))
    chosen = order[np.unique(second[order], return_index=True)[1]]
    return NearCopies(first[chosen], second[chosen], correlation[chosen])
