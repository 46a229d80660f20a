"""From expert logits and labels to numbers: accuracy overall, balanced, per shot group and class, and calibration.

Letters in shapes: N images, E experts, C classes. All accuracies are fractions from 0 to 1; None is "not applicable".
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.data.imbalance import SHOTS, ShotThresholds, shot_groups
from longtail.utils.ensembles import Average, ensemble

BLOCK = 1024  # images whose (C,) probabilities exist at a time: 8,142 classes of iNaturalist need 66 MB in float64


class Calibration(NamedTuple):
    """How sure a model was and how often it was right, in bins of equal width by confidence."""

    counts: Tensor
    """(bins,) images in each bin"""
    confidence: Tensor
    """(bins,) mean probability of the predicted class; 0 in an empty bin"""
    accuracy: Tensor
    """(bins,) share of right predictions; 0 in an empty bin"""

    @property
    def error(self) -> float:
        """Expected calibration error: mean gap between confidence and accuracy (Guo et al., 2017, eq. 3)."""
        gaps = (self.accuracy - self.confidence).abs()
        return float((self.counts * gaps).sum() / self.counts.sum())


@dataclass(frozen=True)
class Scores:
    """Accuracies of one classifier."""

    accuracy: float
    """Every image counts once."""

    balanced: float
    """Every class counts once: the mean of the classes' accuracies, over classes that have test images."""

    many: float | None
    """The same over the many-shot classes; None where none of them has test images."""

    medium: float | None
    """Over the medium-shot classes."""

    few: float | None
    """Over the few-shot classes."""


@dataclass(frozen=True, eq=False)
class Evaluation(Scores):
    """Everything measured on one set of images. The inherited scores are the ensemble's."""

    num_images: int
    """N."""

    top5: float | None
    """Shard of images whose class is among the five largest logits; None for five classes or fewer."""

    nll: float | None
    """Mean negative log-likelihood of the true class, in nats; None where a logit is not finite."""

    ece: float | None
    """Expected calibration error; None where a logit is not finite."""

    disagreement: float | None
    """Shard of images on which two experts predict different classes, mean over pairs; None for one expert."""

    per_class: tuple[float | None, ...]
    """Accuracy of each class (C); None without test images."""

    test_counts: tuple[int, ...]
    """Test images of each class (C)."""

    shots: tuple[str, ...]
    """Group of each class (C): many, medium or few."""

    experts: tuple[Scores, ...]
    """Scores of each expert by itself (E)."""

    confusion: NDArray[np.int64]
    """(C, C) images by true class (row) and predicted class (column)."""

    calibration: Calibration | None
    """The bins behind ``ece``."""

    def frequent_confusions(self, limit: int = 20) -> list[dict[str, int]]:
        """The most frequent mistakes, ``{"true": class, "predicted": class, "count": images}``, at most ``limit``."""
        true, predicted = np.nonzero(self.confusion)
        counts = self.confusion[true, predicted]
        wrong = np.flatnonzero(true != predicted)
        most = wrong[np.argsort(-counts[wrong], kind="stable")[:limit]]
        return [{"true": int(true[i]), "predicted": int(predicted[i]), "count": int(counts[i])} for i in most]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, ready for JSON; of the confusion matrix only the most frequent mistakes."""
        plain: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name not in ("experts", "confusion", "calibration")
        }
        plain["experts"] = [dict(vars(scores)) for scores in self.experts]
        plain["confusions"] = self.frequent_confusions()
        bins = self.calibration
        plain["calibration"] = None if bins is None else {name: bins._asdict()[name].tolist() for name in bins._fields}
        return plain


def confusion_counts(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Images by true class (row) and predicted class (column): (N,) and (N,) -> (C, C), int64."""
    cells = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.view(num_classes, num_classes)


def calibration(confidences: Tensor, correct: Tensor, bins: int = 15) -> Calibration:
    """Sorts images into bins ``((m - 1) / bins, m / bins]`` of confidence: Guo et al. (2017), section 2.

    Args:
        confidences: probability of the predicted class, (N,).
        correct: whether the prediction was right, (N,).
        bins: how many.
    """
    confidences = confidences.double()
    index = ((confidences * bins).ceil().long() - 1).clamp(0, bins - 1)
    counts = torch.bincount(index, minlength=bins)
    filled = counts.clamp(min=1)
    confidence = torch.bincount(index, confidences, minlength=bins) / filled
    accuracy = torch.bincount(index, correct.double(), minlength=bins) / filled
    return Calibration(counts, confidence, accuracy)


def evaluate_logits(
    logits: Tensor,
    labels: Tensor,
    class_counts: Sequence[int],
    *,
    many_above: int = 100,
    few_below: int = 20,
    bins: int = 15,
    average: Average = "logits",
) -> Evaluation:
    """Everything there is to know about the experts' answers to N images, and about their ensemble's.

    Args:
        logits: (N, E, C), on the CPU.
        labels: (N,).
        class_counts: training images of each class, C numbers.
        many_above: many-shot classes have more training images than this.
        few_below: few-shot classes have fewer.
        bins: bins of the calibration error.
        average: what of the experts makes the ensemble.

    Raises:
        ValueError: there are no images, or shapes or labels do not fit together.
    """
    num_images, num_experts, num_classes = logits.shape
    if num_images == 0 or labels.shape != (num_images,):
        raise ValueError(f"{num_images} images and labels of shape {tuple(labels.shape)}; there must be one for each")
    if len(class_counts) != num_classes:
        raise ValueError(f"class_counts has {len(class_counts)} classes and the logits {num_classes}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels go from {labels.min()} to {labels.max()}; they must be from 0 to {num_classes - 1}")

    groups = shot_groups(class_counts, ShotThresholds(many_above, few_below))
    blocks = zip(torch.split(logits, BLOCK), torch.split(labels, BLOCK), strict=True)
    answers = [_answers(ensemble(block, average), own) for block, own in blocks]
    predictions, confidences, log_likelihoods, in_top5 = (torch.cat(parts) for parts in zip(*answers, strict=True))
    by_expert = logits.argmax(dim=2)  # (N, E)

    totals = torch.bincount(labels, minlength=num_classes)
    per_class = _per_class(predictions, labels, totals)
    nll = float(-log_likelihoods.mean())
    binned = calibration(confidences, predictions == labels, bins) if confidences.isfinite().all() else None
    first, second = torch.triu_indices(num_experts, num_experts, offset=1)  # every pair of experts
    differ = (by_expert[:, first] != by_expert[:, second]).double()
    return Evaluation(
        **vars(_scores(predictions, labels, totals, groups)),
        num_images=num_images,
        top5=float(in_top5.double().mean()) if num_classes > 5 else None,
        nll=nll if math.isfinite(nll) else None,
        ece=binned.error if binned else None,
        disagreement=float(differ.mean()) if num_experts > 1 else None,
        per_class=tuple(None if math.isnan(accuracy) else accuracy for accuracy in per_class.tolist()),
        test_counts=tuple(totals.tolist()),
        shots=tuple(np.select([groups[shot] for shot in SHOTS], SHOTS, default="").tolist()),
        experts=tuple(_scores(own, labels, totals, groups) for own in by_expert.unbind(dim=1)),
        confusion=confusion_counts(predictions, labels, num_classes).numpy(),
        calibration=binned,
    )


def score(
    predictions: Tensor, labels: Tensor, class_counts: Sequence[int], *, many_above: int = 100, few_below: int = 20
) -> Scores:
    """The accuracies of one answer to each of N images.

    Args:
        predictions: classes, (N,).
        labels: (N,).
        class_counts: training images of each class, C numbers.
        many_above: many-shot classes have more training images than this.
        few_below: few-shot classes have fewer.
    """
    totals = torch.bincount(labels, minlength=len(class_counts))
    return _scores(predictions, labels, totals, shot_groups(class_counts, ShotThresholds(many_above, few_below)))


def _answers(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The prediction, its probability, the true class's log-probability, and if it is among five: (B,) each.

    Of an ensemble's logits (B, C) in their own precision, as the model itself predicts; only what is averaged over
    images is in float64.
    """
    predictions = logits.argmax(dim=1)
    in_top5 = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(dim=1)
    log_probabilities = logits.double().log_softmax(dim=1)
    chosen = torch.stack([predictions, labels], dim=1)
    of_prediction, of_label = log_probabilities.gather(1, chosen).unbind(dim=1)
    return predictions, of_prediction.exp(), of_label, in_top5


def _per_class(predictions: Tensor, labels: Tensor, totals: Tensor) -> Tensor:
    """Accuracy of each class (C,), in float64; nan without test images."""
    hits = torch.bincount(labels[predictions == labels], minlength=len(totals))
    return hits.double() / totals


def _scores(predictions: Tensor, labels: Tensor, totals: Tensor, groups: dict[str, NDArray[np.bool_]]) -> Scores:
    per_class = _per_class(predictions, labels, totals)
    tested = totals > 0

    def mean(classes: Tensor) -> float | None:
        return float(per_class[classes].mean()) if classes.any() else None

    return Scores(
        accuracy=float((predictions == labels).double().mean()),
        balanced=float(per_class[tested].mean()),
        **{shot: mean(torch.from_numpy(mask) & tested) for shot, mask in groups.items()},
    )
