"""What a data source yields: labelled images in a train, a validation and a test part."""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.imbalance import Profile, choose_subset, hold_out, imbalanced_counts
from longtail.utils.errors import InputError


@dataclass(frozen=True)
class ImageSplit:
    """Labelled images: either decoded pixels or the files they lie in."""

    labels: NDArray[np.int64]
    """(N,), classes pluralize from 0"""

    pixels: NDArray[np.uint8] | None = None
    """(N, H, W, 3), red, green, blue"""

    paths: NDArray[np.object_] | None = None
    """(N,) of `Path`"""

    def __post_init__(self) -> None:
        images = self.pixels if self.pixels is not None else self.paths
        assert images is not None
        assert len(images) == len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self, root: Path) -> str:
        """Tells apart any two splits that differ in an image or a label; paths count from ``root``."""
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        if self.pixels is not None:
            digest.update(self.pixels.tobytes())
        for path in () if self.paths is None else self.paths:
            digest.update(os.fsencode(os.path.relpath(path, root)) + b"\0")
        return digest.hexdigest()

    def take(self, positions: NDArray[np.int64]) -> "ImageSplit":
        """The part with these images, in this order."""
        pixels = None if self.pixels is None else self.pixels[positions]
        paths = None if self.paths is None else self.paths[positions]
        return ImageSplit(self.labels[positions], pixels, paths)


@dataclass(frozen=True)
class DataSplits:
    """The parts of a data set. ``val`` is None where there is none."""

    train: ImageSplit
    val: ImageSplit | None
    test: ImageSplit
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class, C numbers."""
        return [int(n) for n in np.bincount(self.train.labels, minlength=self.num_classes)]

    def imbalanced(self, profile: Profile, factor: float, seed: int = 0, spare: int = 0) -> "DataSplits":
        """The same with training images thinned out to a long tail; the other parts stay as they are.

        Classes keep their order by frequency: the profile starts with the one that has the most images, and among
        equals with the first. Of the images left out, up to ``spare`` of each class become the validation part.

        Raises:
            InputError: a class would be left without images, or has fewer than the profile asks for.
        """
        available = np.array(self.class_counts)
        largest = int(available.max())
        counts = imbalanced_counts(profile, largest, self.num_classes, factor)
        if min(counts) < 1:
            raise InputError(
                f"data.imbalance_factor {factor:g} leaves the rarest of {self.num_classes} classes without images "
                f"({largest} images in the most common one); at least {1 / largest:.2g} is needed"
            )
        wanted = np.empty_like(available)
        wanted[np.argsort(-available, kind="stable")] = counts
        if (short := np.flatnonzero(available < wanted)).size:
            name, has, needs = self.class_names[short[0]], available[short[0]], wanted[short[0]]
            raise InputError(
                f"data.imbalance '{profile}' with factor {factor:g} asks for {needs} training images of class "
                f"'{name}', which has {has}; take a smaller factor, or 'none' for data that are long-tailed already"
            )
        labels = self.train.labels
        chosen = choose_subset(labels, wanted.tolist(), seed)
        thinned = replace(self, train=self.train.take(chosen))
        if spare == 0:
            return thinned
        left = np.setdiff1d(np.arange(len(labels)), chosen)
        held = np.sort(left[choose_subset(labels[left], np.minimum(available - wanted, spare).tolist(), seed)])
        return replace(thinned, val=self.train.take(held))

    def with_validation(self, fraction: float, seed: int = 0) -> "DataSplits":
        """The same with a share of each class's training images held out for validation, unless there are some.

        Raises:
            InputError: there is a validation part already, or too few images to hold any out.
        """
        if self.val is not None:
            raise InputError("data.val_fraction is set, but the data set has a validation part of its own; set it to 0")
        kept, held = hold_out(self.train.labels, fraction, seed)
        if len(held) == 0:
            raise InputError(f"data.val_fraction {fraction:g} holds out no image at all; choose a larger one")
        return replace(self, train=self.train.take(kept), val=self.train.take(held))


def as_paths(paths: list[Path]) -> NDArray[np.object_]:
    """Paths as an array that `ImageSplit` can index."""
    array = np.empty(len(paths), dtype=object)
    array[:] = paths
    return array
