"""Labelled images of a data set, in training, validation and test splits."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.imbalance import choose_subset, hold_out, imbalanced_counts
from longtail.utils.choices import Profile
from longtail.utils.errors import InputError


@dataclass(frozen=True)
class ImageSplit:
    """Labelled images: either decoded pixels or image files."""

    labels: NDArray[np.int64]
    """(N,), from 0"""

    pixels: NDArray[np.uint8] | None = None
    """(N, H, W, 3), RGB"""

    paths: NDArray[np.object_] | None = None
    """(N,) of `Path`"""

    def __post_init__(self) -> None:
        images = self.pixels if self.pixels is not None else self.paths
        assert images is not None
        assert len(images) == len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self, root: Path) -> str:
        """Returns a hash of all labels and of the pixels or the paths from ``root``."""
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        if self.pixels is not None:
            digest.update(self.pixels.tobytes())
        for path in () if self.paths is None else self.paths:
            digest.update(os.fsencode(os.path.relpath(path, root)) + b"\0")
        return digest.hexdigest()

    def take(self, positions: NDArray[np.int64]) -> "ImageSplit":
        """Returns the images at these positions, in this order."""
        pixels = None if self.pixels is None else self.pixels[positions]
        paths = None if self.paths is None else self.paths[positions]
        return ImageSplit(self.labels[positions], pixels, paths)


@dataclass(frozen=True)
class DataSplits:
    """The splits of a data set."""

    train: ImageSplit
    val: ImageSplit | None
    test: ImageSplit
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """The number of classes C."""
        return len(self.class_names)

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class, C numbers."""
        return [int(n) for n in np.bincount(self.train.labels, minlength=self.num_classes)]

    @property
    def splits(self) -> dict[str, ImageSplit]:
        """The splits by name: train, val (if any) and test."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: split for name, split in splits.items() if split is not None}

    def imbalanced(self, profile: Profile, factor: float, seed: int = 0, spare: int = 0) -> "DataSplits":
        """Returns the data set with a long-tailed subset of the training images.

        The class with the most images becomes the most common one. Classes with equally many images keep their order.

        Args:
            profile: see `imbalanced_counts`.
            factor: images of the rarest class divided by those of the most common one.
            seed: of the choice of images.
            spare: up to this many images of each class that are left out become the validation split.

        Raises:
            InputError: a class would have no images, or has too few for the profile.
        """
        available = np.array(self.class_counts)
        largest = int(available.max())
        counts = imbalanced_counts(profile, largest, self.num_classes, factor)
        if min(counts) < 1:
            raise InputError(
                f"data.imbalance_factor is {factor:g}, which leaves no images of the rarest of {self.num_classes} "
                f"classes; it must be at least {1 / largest:.2g}, because the most common class has {largest} images"
            )
        wanted = np.empty_like(available)
        wanted[np.argsort(-available, kind="stable")] = counts
        if (short := np.flatnonzero(available < wanted)).size:
            name, has, needs = self.class_names[short[0]], available[short[0]], wanted[short[0]]
            raise InputError(
                f"data.imbalance '{profile}' with factor {factor:g} needs {needs} training images of class '{name}', "
                f"which has {has}; use a smaller factor, or 'none' if the data are already long-tailed"
            )
        labels = self.train.labels
        chosen = choose_subset(labels, wanted.tolist(), seed)
        subset = replace(self, train=self.train.take(chosen))
        if spare == 0:
            return subset
        left = np.setdiff1d(np.arange(len(labels)), chosen)
        positions = np.sort(left[choose_subset(labels[left], np.minimum(available - wanted, spare).tolist(), seed)])
        return replace(subset, val=self.train.take(positions))

    def with_validation(self, fraction: float, seed: int = 0) -> "DataSplits":
        """Returns the data set with this share of each class's training images as the validation split.

        Raises:
            InputError: there is already a validation split, or there are too few images to hold any out.
        """
        if self.val is not None:
            raise InputError(f"data.val_fraction is {fraction:g}, but the data set has a validation split; set it to 0")
        kept, held_out = hold_out(self.train.labels, fraction, seed)
        if len(held_out) == 0:
            raise InputError(f"data.val_fraction is {fraction:g}, which holds out no images; use a larger value")
        return replace(self, train=self.train.take(kept), val=self.train.take(held_out))


def hold_out_test(
    images: ImageSplit, class_names: tuple[str, ...], fraction: float, seed: int, source: str
) -> DataSplits:
    """Returns a data set with this share of each class's images as the test split.

    At least one test image of every class with two images is taken.

    Raises:
        InputError: no image would be left for testing; names ``source``.
    """
    if fraction == 0:
        raise InputError(f"data.test_fraction is 0, but {source} has no test split; set it above 0")
    train, test = hold_out(images.labels, fraction, seed, at_least=1)
    if len(test) == 0:
        raise InputError(f"each class in {source} has a single image, so none is left for testing; add images")
    return DataSplits(images.take(train), None, images.take(test), class_names)
