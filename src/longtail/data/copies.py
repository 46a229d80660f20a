"""Copies: the same picture several times in a data set, found without decoding image files."""

import hashlib
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.splits import DataSplits, ImageSplit
from longtail.utils.errors import InputError
from longtail.utils.format import pluralize, shortened_list
from longtail.utils.threads import map_in_threads

logger = logging.getLogger(__name__)

TAIL = 4096
"""Bytes at the end of a file that are compared first. The start may be the same in all photos of a camera"""

EXAMPLES = 3

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class AllImages:
    """The N images of all splits in one order: train, val, test.

    Args:
        dataset: the splits.
        root: folder from which names of files are written.
    """

    dataset: DataSplits
    root: Path

    @cached_property
    def labels(self) -> Positions:
        """(N,), from 0."""
        return np.concatenate([split.labels for split in self.dataset.splits.values()])

    @cached_property
    def splits(self) -> Positions:
        """Which split each image is in, by its position among the splits: (N,)."""
        return np.repeat(np.arange(len(self.dataset.splits)), [len(split) for split in self.dataset.splits.values()])

    @cached_property
    def paths(self) -> list[Path] | None:
        """N files; None if the images are decoded."""
        splits = [split.paths for split in self.dataset.splits.values() if split.paths is not None]
        return list(np.concatenate(splits)) if splits else None

    @cached_property
    def names(self) -> list[str]:
        """Paths from the root; for decoded images split and position, such as test[7]."""
        if self.paths is None:
            return [f"{name}[{k}]" for name, split in self.dataset.splits.items() for k in range(len(split))]
        return [str(path.relative_to(self.root) if path.is_relative_to(self.root) else path) for path in self.paths]


def find_first_copies(images: AllImages) -> Positions:
    """Returns for each image the first one with the same bytes, or its own position: (N,).

    Of files, only those with the same size and the same last `TAIL` bytes are read in full.
    """
    paths = images.paths
    if paths is None:
        splits = images.dataset.splits.values()
        return first_equal(
            [digest(row.tobytes()) for split in splits if split.pixels is not None for row in split.pixels]
        )
    # Unreadable files have no copies.
    keys: list[Hashable] = [None] * len(paths)
    candidates = list(range(len(paths)))
    steps: tuple[Callable[[Path], Hashable], ...] = (_size, partial(_content, last=TAIL), _content)
    for step in steps:
        for position, key in zip(candidates, map_in_threads(step, [paths[p] for p in candidates]), strict=True):
            keys[position] = (keys[position], key) if key is not None else position
        groups: dict[Hashable, list[int]] = {}
        for position in candidates:
            groups.setdefault(keys[position], []).append(position)
        candidates = sorted(position for group in groups.values() if len(group) > 1 for position in group)
    return first_equal(keys)


def first_equal(keys: Iterable[Hashable]) -> Positions:
    """Returns for each key the position of the first equal one.

    Example:
        >>> first_equal(["a", "b", "a"]).tolist()
        [0, 1, 0]
    """
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(key, position) for position, key in enumerate(keys)], dtype=np.int64)


def without_test_copies(dataset: DataSplits, root: Path) -> DataSplits:
    """Returns the data set without the test images that are copies of training or validation images.

    Raises:
        InputError: no test image is left.
    """
    images = AllImages(dataset, root)
    num_others = len(images.labels) - len(dataset.test)
    copies = find_first_copies(images)[num_others:] < num_others
    if copies.all():
        raise InputError(
            "data.duplicates is drop-test, but all test images are copies of training or validation images"
        )
    if copies.any():
        text = pluralize(int(copies.sum()), "test image that is a copy", "test images that are copies")
        logger.info("Left out %s of training or validation images", text)
    return replace(dataset, test=dataset.test.take(np.flatnonzero(~copies)))


def log_copies(dataset: DataSplits, root: Path, decoded: Mapping[str, ImageSplit] | None = None) -> None:
    """Logs pictures that are in several splits, have two labels or occur twice in a split; otherwise nothing is logged.

    Args:
        dataset: the splits.
        root: folder from which names of files are written.
        decoded: the splits in memory, if files were decoded: finds files with other bytes, but the same pixels.
    """
    images = AllImages(dataset, root)
    first = find_first_copies(images)
    if decoded is not None and decoded.keys() == dataset.splits.keys():
        _log_encoded_again(images, first, [decoded[name] for name in dataset.splits])
    second = np.flatnonzero(first != np.arange(len(first)))
    if not len(second):
        return
    first, names, labels, splits = first[second], images.names, images.labels, images.splits
    two_splits, two_labels = splits[first] != splits[second], labels[first] != labels[second]
    is_test = splits[second] == len(dataset.splits) - 1
    for chosen, singular, plural in (
        (
            two_splits & is_test,
            "test image is a copy of a training or validation image (data.duplicates drop-test leaves it out)",
            "test images are copies of training or validation images (data.duplicates drop-test leaves them out)",
        ),
        (
            two_splits & ~is_test,
            "validation image is a copy of a training image",
            "validation images are copies of training images",
        ),
        (
            two_labels,
            "image is a copy of an image with another label",
            "images are copies of images with another label",
        ),
        (~two_splits & ~two_labels, "image occurs several times in a split", "images occur several times in a split"),
    ):
        if number := int(chosen.sum()):
            logger.warning(
                "%s: %s",
                pluralize(number, singular, plural),
                _examples(names, zip(first[chosen], second[chosen], strict=True)),
            )


def _log_encoded_again(images: AllImages, first: Positions, decoded: Sequence[ImageSplit]) -> None:
    """Logs images with the pixels of another one that is no copy of their file."""
    same = first_equal(digest(row.tobytes()) for split in decoded if split.pixels is not None for row in split.pixels)
    second = np.flatnonzero((same != np.arange(len(same))) & (first[same] != first))
    if len(second):
        text = pluralize(len(second), "image has", "images have")
        examples = _examples(images.names, zip(same[second], second, strict=True))
        logger.warning("%s the pixels of another one, in another file ('longtail check' lists all): %s", text, examples)


def _examples(names: Sequence[str], pairs: Iterable[tuple[int, int]]) -> str:
    """The first pairs of an image and its copy."""
    return shortened_list([f"{names[copy]} = {names[image]}" for image, copy in pairs], EXAMPLES)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size or None
    except OSError:  # reported when the image is decoded
        return None


def _content(path: Path, last: int | None = None) -> bytes | None:
    """Returns the digest of the last bytes of a file, or of all bytes."""
    try:
        with path.open("rb") as file:
            if last is not None:
                file.seek(-min(last, path.stat().st_size), os.SEEK_END)
            return digest(file.read())
    except OSError:
        return None


def digest(content: bytes) -> bytes:
    """Returns 16 bytes that are equal for equal contents."""
    return hashlib.blake2b(content, digest_size=16).digest()
