"""Long tails: imbalance profiles, the choice of a subset, shot groups. NumPy only."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Profile = Literal["exponential", "step"]
Indices = NDArray[np.int64]

SHOTS = ("many", "medium", "few")


def imbalanced_counts(profile: Profile, largest: int, num_classes: int, factor: float) -> list[int]:
    """Images of each class, most common first, as in LDAM (Cao et al., 2019).

    exponential: ``int(largest * factor^(j / (C - 1)))`` for class j. step: the second half of the classes gets
    ``int(largest * factor)``, the first half ``largest``.
    """
    if profile == "exponential":
        return [int(largest * factor ** (j / max(num_classes - 1, 1))) for j in range(num_classes)]
    half = num_classes // 2
    return [int(largest)] * half + [int(largest * factor)] * (num_classes - half)


def choose_subset(labels: Indices, counts: Sequence[int], seed: int = 0) -> Indices:
    """Positions of a subset with ``counts[k]`` images of class k, class by class.

    NumPy's legacy generator, seeded once, shuffles the positions of each class in turn and the first are taken:
    the very subset on which results for CIFAR-LT are published.
    """
    generator = np.random.RandomState(seed)
    chosen = []
    for label, count in enumerate(counts):
        positions = np.flatnonzero(labels == label)
        generator.shuffle(positions)
        chosen.append(positions[:count])
    return np.concatenate(chosen)


def hold_out(labels: Indices, fraction: float, seed: int = 0) -> tuple[Indices, Indices]:
    """Splits positions into (kept, held out), ``round(fraction * n)`` of each class held out, both in order.

    A class keeps at least one image.
    """
    counts = np.bincount(labels)
    held = [min(round(fraction * int(n)), int(n) - 1) if n else 0 for n in counts]
    out = np.sort(choose_subset(labels, held, seed))
    return np.setdiff1d(np.arange(len(labels)), out), out


class ShotThresholds(NamedTuple):
    """Numbers of training images that separate many-, medium- and few-shot classes.

    RIDE uses 100 and 20; RIDE-Swin uses 99 and 21.
    """

    many_above: int = 100
    """A many-shot class has more images than this"""

    few_below: int = 20
    """A few-shot class has fewer images than this"""


DEFAULT_THRESHOLDS = ShotThresholds()


def shot_groups(
    class_counts: Sequence[int], thresholds: ShotThresholds = DEFAULT_THRESHOLDS
) -> dict[str, NDArray[np.bool_]]:
    """Returns the masks (C,) of the many-, medium- and few-shot classes."""
    counts = np.asarray(class_counts)
    many, few = counts > thresholds.many_above, counts < thresholds.few_below
    return {"many": many, "medium": ~many & ~few, "few": few}
