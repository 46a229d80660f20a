"""Long tails: imbalance profiles, choice of a subset, shot groups. Needs only NumPy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtail.utils.choices import Profile

Indices = NDArray[np.int64]

SHOTS = ("many", "medium", "few")


def imbalanced_counts(profile: Profile, largest: int, num_classes: int, factor: float) -> list[int]:
    """Returns the number of images of each class, most common first, as in LDAM (Cao et al., 2019).

    exponential: class j has ``int(largest * factor^(j / (C - 1)))`` images. step: the first half of the classes has
    ``largest`` images, the second half ``int(largest * factor)``.

    Example:
        >>> imbalanced_counts("exponential", 500, 5, 0.01)
        [500, 158, 50, 15, 5]
    """
    if profile == "exponential":
        return [int(largest * factor ** (j / max(num_classes - 1, 1))) for j in range(num_classes)]
    half = num_classes // 2
    return [int(largest)] * half + [int(largest * factor)] * (num_classes - half)


def choose_subset(labels: Indices, counts: Sequence[int], seed: int = 0) -> Indices:
    """Returns the positions of a subset with ``counts[k]`` images of class k, class by class.

    NumPy's legacy generator, seeded once, shuffles the positions of each class in turn; the first ones are taken. This
    gives the subsets of the published results on CIFAR-LT.
    """
    generator = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(counts):
        positions = np.flatnonzero(labels == label)
        generator.shuffle(positions)
        chosen.append(positions[:count])
    return np.concatenate(chosen)


def hold_out(labels: Indices, fraction: float, seed: int = 0, at_least: int = 0) -> tuple[Indices, Indices]:
    """Returns the positions that are kept and those that are held out, both in order.

    ``round(fraction * n)`` images of each class are held out, or ``at_least`` so many, but at least one is kept.
    """
    counts = np.bincount(labels).tolist()
    held_out_counts = [max(0, min(max(round(fraction * n), at_least), n - 1)) for n in counts]
    held_out = np.sort(choose_subset(labels, held_out_counts, seed))
    return np.setdiff1d(np.arange(len(labels)), held_out), held_out


class ShotThresholds(NamedTuple):
    """Limits of many-, medium- and few-shot classes. RIDE uses 100 and 20, RIDE-Swin 99 and 21."""

    many_above: int = 100
    """A many-shot class has more training images than this"""

    few_below: int = 20
    """A few-shot class has fewer training images than this"""


DEFAULT_THRESHOLDS = ShotThresholds()


def shot_groups(
    class_counts: Sequence[int], thresholds: ShotThresholds = DEFAULT_THRESHOLDS
) -> dict[str, NDArray[np.bool_]]:
    """Returns the masks (C,) of the many-, medium- and few-shot classes.

    Example:
        >>> shot_groups([500, 60, 5])["few"].tolist()
        [False, False, True]
    """
    counts = np.asarray(class_counts)
    many, few = counts > thresholds.many_above, counts < thresholds.few_below
    return {"many": many, "medium": ~many & ~few, "few": few}
