"""Test subsets with other class shares, from those of training to the opposite ones. NumPy only."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtail.data.imbalance import Indices, choose_subset, imbalanced_counts
from longtail.utils.errors import InputError, check_choice

RATIOS = (50, 25, 10, 5, 2)
"""Of the most common class to the rarest, as published"""

Direction = Literal["forward", "backward"]


class LabelShift(NamedTuple):
    """A subset of test images, and its class counts."""

    positions: Indices
    """(M,), class by class"""

    counts: tuple[int, ...]
    """Images of each class (C)"""

    @property
    def prior(self) -> NDArray[np.float64]:
        """Share of each class: (C,)."""
        counts = np.asarray(self.counts, dtype=np.float64)
        shares: NDArray[np.float64] = counts / counts.sum()
        return shares


def label_shift(
    labels: Indices, class_counts: Sequence[int], ratio: float, direction: Direction = "forward"
) -> LabelShift:
    """Returns a long-tailed subset of test images: ``int(n * ratio^(-j / (C - 1)))`` images of the class of rank j.

    n is the size of the rarest class of the test set. Forward: the ranks are those of the training images; equally
    common classes keep their order. Backward: the reverse ranks. LADE (Hong et al., 2021) and SADE (Zhang et al.,
    2022), experiments. Images are chosen as for CIFAR-LT, see `choose_subset`. Of the CIFAR test sets these are SADE's
    subsets.

    Args:
        labels: of the test images, (N,).
        class_counts: training images of each class, C numbers.
        ratio: of the most common class to the rarest; 1 is uniform.
        direction: "forward" or "backward".

    Raises:
        InputError: a class would have no images, or the direction is unknown.
    """
    check_choice("direction", direction, ("forward", "backward"))
    num_classes = len(class_counts)
    rarest = int(np.bincount(labels, minlength=num_classes).min())
    if not 1 <= ratio <= rarest:
        raise InputError(f"ratio is {ratio:g}; it must be from 1 to {rarest}, the number of images of the rarest class")
    # Rounding makes 0 of int(n * (1 / n)).
    by_rank = [max(1, count) for count in imbalanced_counts("exponential", rarest, num_classes, 1 / ratio)]
    ranking = np.argsort(-np.asarray(class_counts), kind="stable")
    counts = np.empty(num_classes, dtype=np.int64)
    counts[ranking] = by_rank if direction == "forward" else by_rank[::-1]
    chosen = tuple(counts.tolist())
    return LabelShift(choose_subset(labels, chosen, seed=0), chosen)


def label_shifts(
    labels: Indices, class_counts: Sequence[int], ratios: Sequence[float] = RATIOS
) -> dict[str, LabelShift]:
    """Returns subsets by name: "forward-50", ..., "forward-2", "uniform", "backward-2", ..., "backward-50".

    Args:
        labels: of the test images, (N,).
        class_counts: training images of each class, C numbers.
        ratios: above 1.

    Raises:
        InputError: a class would have no images.
    """
    falling = sorted(ratios, reverse=True)
    kinds: list[tuple[Direction, float]] = [("forward", ratio) for ratio in falling]
    kinds += [("forward", 1), *(("backward", ratio) for ratio in reversed(falling))]
    return {
        "uniform" if ratio == 1 else f"{direction}-{ratio:g}": label_shift(labels, class_counts, ratio, direction)
        for direction, ratio in kinds
    }


def valid_ratios(labels: Indices, classes: Sequence[object], ratios: Sequence[int] = RATIOS) -> list[int]:
    """Returns the ratios for which every class, given by name or number, has enough images, of labels (N,).

    Raises:
        InputError: there is none.
    """
    counts = np.bincount(labels, minlength=len(classes))
    valid = [ratio for ratio in ratios if ratio <= counts.min()]
    if not valid:
        label = int(counts.argmin())
        raise InputError(
            f"class '{classes[label]}' has {counts[label]} of the images; label shift needs at least {min(ratios)} of "
            "each class"
        )
    return valid
