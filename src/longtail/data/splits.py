"""What a data source yields: labelled images in a train, a validation and a test part."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.longtail import Profile, choose_subset, hold_out, imbalanced_counts
from longtail.errors import InputError


@dataclass(frozen=True)
class Split:
    """Labelled images: either decoded pixels or the files they lie in."""

    labels: NDArray[np.int64]
    """(N,), classes counted from 0"""

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

    def take(self, positions: NDArray[np.int64]) -> "Split":
        """The part with these images, in this order."""
        pixels = None if self.pixels is None else self.pixels[positions]
        paths = None if self.paths is None else self.paths[positions]
        return Split(self.labels[positions], pixels, paths)


@dataclass(frozen=True)
class Dataset:
    """The parts of a data set. ``val`` is None where there is none."""

    train: Split
    val: Split | None
    test: Split
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def class_counts(self) -> list[int]:
        """Training images of each class, C numbers."""
        return [int(n) for n in np.bincount(self.train.labels, minlength=self.num_classes)]

    def imbalanced(self, profile: Profile, factor: float, seed: int = 0) -> "Dataset":
        """The same with training images thinned out to a long tail; the other parts stay as they are.

        Raises:
            InputError: a class would be left without images.
        """
        largest = max(self.class_counts)
        counts = imbalanced_counts(profile, largest, self.num_classes, factor)
        if min(counts) < 1:
            raise InputError(
                f"data.imbalance_factor {factor:g} leaves the rarest of {self.num_classes} classes without images "
                f"({largest} images in the most common one); at least {1 / largest:.2g} is needed"
            )
        return replace(self, train=self.train.take(choose_subset(self.train.labels, counts, seed)))

    def with_validation(self, fraction: float, seed: int = 0) -> "Dataset":
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
    """Paths as an array that `Split` can index."""
    array = np.empty(len(paths), dtype=object)
    array[:] = paths
    return array
