"""How a model does where classes are as common as in training, equally common, or the other way round, in one piece."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longtail.evaluation.label_shift.adjustment import adjust_to_prior, aggregation_weights
from longtail.evaluation.label_shift.subsets import RATIOS, label_shifts
from longtail.utils.ensembles import Average, ensemble, weighted_ensemble
from longtail.utils.errors import InputError


def valid_ratios(labels: Tensor, num_classes: int, ratios: Sequence[int] = RATIOS) -> list[int]:
    """The ratios for which every class has enough of the images, labels (N,).

    Raises:
        InputError: there is none.
    """
    least = int(labels.bincount(minlength=num_classes).min())
    fitting = [ratio for ratio in ratios if ratio <= least]
    if not fitting:
        raise InputError(f"a class has {least} of the images; for label shift each must have {min(ratios)} at least")
    return fitting


class LearnedPrior(NamedTuple):
    """How common experts take classes to be."""

    log_prior: Tensor
    """(E, C) or (1, C), see `longtail.evaluation.label_shift.adjustment.learned_log_prior`"""

    approximation: str
    """Why they do so only about; empty where nothing is known against it"""


@dataclass(frozen=True)
class ShiftedScores:
    """Accuracies, from 0 to 1, on a part of the images; every image counts once."""

    distribution: str
    """Such as forward-50, uniform, backward-2; see `longtail.evaluation.label_shift.subsets`"""

    num_images: int
    mean: float
    """Of the ensemble of all experts"""

    known_prior: float
    """Of the ensemble after adjustment to how common classes are there"""

    aggregated: float | None
    """Of the experts weighted by how stable they are, SADE's test-time aggregation; None for one expert"""

    weights: tuple[float, ...] | None
    """Of the experts therein (E)"""

    experts: tuple[float, ...]
    """Of each expert (E)"""


@dataclass(frozen=True)
class LabelShiftReport:
    """Scores from the training images' distribution to its opposite."""

    rows: tuple[ShiftedScores, ...]

    left_out: tuple[int, ...]
    """Ratios for which a class has too few images"""

    approximation: str
    """See `LearnedPrior`"""

    alike: bool
    """Whether all experts take classes to be as common, so that weighting them has no skills to choose from"""

    average: Average
    """What of the experts makes the ensemble"""

    @classmethod
    def of(
        cls,
        logits: Tensor,
        labels: Tensor,
        class_counts: Sequence[int],
        learned: LearnedPrior,
        views: tuple[Tensor, Tensor] | None,
        ratios: Sequence[int] = RATIOS,
        *,
        average: Average = "logits",
    ) -> "LabelShiftReport":
        """All of it from what was said of each image once.

        Args:
            logits: what the experts say of the images, (N, E, C).
            labels: (N,).
            class_counts: training images of each class, C numbers.
            learned: how common the experts take classes to be.
            views: what they say of two augmented views of the images, (N, E, C) each; None for one expert.
            ratios: of the most common class to the rarest.
            average: what of the experts makes the answers.

        Raises:
            InputError: a class has fewer than two images.
        """
        fitting = valid_ratios(labels, len(class_counts), ratios)
        rows = []
        for name, shift in label_shifts(labels.numpy(), class_counts, fitting).items():
            at = torch.from_numpy(shift.positions)
            said, right = logits[at], labels[at]
            adjusted = adjust_to_prior(said, learned.log_prior, torch.from_numpy(shift.prior).log().float())
            weights = None if views is None else aggregation_weights(views[0][at], views[1][at], average=average)
            rows.append(
                ShiftedScores(
                    name,
                    len(at),
                    _accuracy(ensemble(said, average), right),
                    _accuracy(ensemble(adjusted, average), right),
                    None if weights is None else _accuracy(weighted_ensemble(said, weights, average), right),
                    None if weights is None else tuple(weights.tolist()),
                    tuple(_accuracy(own, right) for own in said.unbind(dim=1)),
                )
            )
        left_out = tuple(ratio for ratio in ratios if ratio not in fitting)
        alike = bool((learned.log_prior == learned.log_prior[0]).all())
        return cls(tuple(rows), left_out, learned.approximation, alike, average)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, ready for JSON."""
        return asdict(self)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())
