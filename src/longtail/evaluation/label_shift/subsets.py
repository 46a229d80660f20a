"""Test sets in which classes are not equally common: how a model does where the world is not balanced. NumPy only."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtail.data.imbalance import Indices, choose_subset, imbalanced_counts
from longtail.utils.errors import InputError

RATIOS = (50, 25, 10, 5, 2)
"""Of the most common class to the rarest, as published."""

Direction = Literal["forward", "backward"]


class LabelShift(NamedTuple):
    """A part of a test set, and how common each class is in it."""

    positions: Indices
    """(M,), class by class"""

    counts: tuple[int, ...]
    """images of each class (C)"""

    @property
    def prior(self) -> NDArray[np.float64]:
        """Shard of each class: (C,)."""
        counts = np.asarray(self.counts, dtype=np.float64)
        shares: NDArray[np.float64] = counts / counts.sum()
        return shares


def label_shift(
    labels: Indices, class_counts: Sequence[int], ratio: float, direction: Direction = "forward", seed: int = 0
) -> LabelShift:
    """A long-tailed part of a test set: ``int(n * ratio^(-j / (C - 1)))`` images of the class of rank j.

    n is what the rarest class of the test set has. Forward: ranks are those of the training images, what was common
    stays common; classes that are as common rank in their own order. Backward: the other way round. LADE (Hong et al.,
    2021) and SADE (Zhang et al., 2022), experiments. Images are chosen as for CIFAR-LT, see `choose_subset`; seed 0
    yields SADE's parts of the CIFAR test sets.

    Args:
        labels: of the test images, (N,).
        class_counts: training images of each class, C numbers.
        ratio: of the most common class to the rarest; 1 is uniform.
        direction: "forward" or "backward".
        seed: of the choice.

    Raises:
        InputError: a class would be left without images, or the direction is unknown.
    """
    if direction not in ("forward", "backward"):
        raise InputError(f"direction '{direction}': 'forward' or 'backward'")
    num_classes = len(class_counts)
    least = int(np.bincount(labels, minlength=num_classes).min())
    if not 1 <= ratio <= least:
        raise InputError(
            f"ratio {ratio:g}: from 1 to {least}, the fewest test images that a class has, so that each keeps an image"
        )
    # 1 where int(n * (1 / n)) is rounded to 0.
    by_rank = [max(1, count) for count in imbalanced_counts("exponential", least, num_classes, 1 / ratio)]
    ranking = np.argsort(-np.asarray(class_counts), kind="stable")
    counts = np.empty(num_classes, dtype=np.int64)
    counts[ranking] = by_rank if direction == "forward" else by_rank[::-1]
    chosen = tuple(counts.tolist())
    return LabelShift(choose_subset(labels, chosen, seed), chosen)


def label_shifts(
    labels: Indices, class_counts: Sequence[int], ratios: Sequence[float] = RATIOS, seed: int = 0
) -> dict[str, LabelShift]:
    """Forward, uniform and backward parts of a test set, from as in training to the other way round, by name.

    "forward-50", ..., "forward-2", "uniform", "backward-2", ..., "backward-50".

    Args:
        labels: of the test images, (N,).
        class_counts: training images of each class, C numbers.
        ratios: above 1.
        seed: see `label_shift`.

    Raises:
        InputError: a class would be left without images.
    """
    falling = sorted(ratios, reverse=True)
    kinds: list[tuple[Direction, float]] = [("forward", ratio) for ratio in falling]
    kinds += [("forward", 1), *(("backward", ratio) for ratio in reversed(falling))]
    return {
        "uniform" if ratio == 1 else f"{direction}-{ratio:g}": label_shift(labels, class_counts, ratio, direction, seed)
        for direction, ratio in kinds
    }
