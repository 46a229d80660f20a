"""Metrics from expert logits and labels: accuracy overall, balanced, by shot group and by class; calibration.

Letters in shapes: N images, E experts, C classes. Accuracies are fractions from 0 to 1; None means not applicable.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.data.imbalance import DEFAULT_THRESHOLDS, SHOTS, ShotThresholds, shot_groups
from longtail.utils.choices import Average
from longtail.utils.ensembles import ensemble

BLOCK = 1024
"""Images whose (C,) probabilities exist at a time: 8,142 classes of iNaturalist need 66 MB in float64"""


class Calibration(NamedTuple):
    """Confidence and accuracy of a model, in bins of equal width by confidence."""

    counts: Tensor
    """(bins,) images in each bin"""

    confidence: Tensor
    """(bins,) mean probability of the predicted class; 0 in an empty bin"""

    accuracy: Tensor
    """(bins,) fraction of correct predictions; 0 in an empty bin"""

    @property
    def error(self) -> float:
        """Expected calibration error: mean gap between confidence and accuracy (Guo et al., 2017, eq. 3)."""
        gaps = (self.accuracy - self.confidence).abs()
        return float((self.counts * gaps).sum() / self.counts.sum())


@dataclass(frozen=True)
class Scores:
    """Accuracies of one classifier."""

    accuracy: float
    """Fraction of correct predictions"""

    balanced: float
    """Mean of the classes' accuracies, over the classes that have test images"""

    many: float | None
    """Mean accuracy of the many-shot classes; None if none of them has test images"""

    medium: float | None
    """Mean accuracy of the medium-shot classes; None if none of them has test images"""

    few: float | None
    """Mean accuracy of the few-shot classes; None if none of them has test images"""


@dataclass(frozen=True, eq=False)
class Evaluation(Scores):
    """All metrics of a model on one set of images. The inherited scores are those of the ensemble."""

    num_images: int
    """N"""

    top5: float | None
    """Fraction of images whose class has one of the five largest logits; None for five classes or fewer"""

    nll: float | None
    """Mean negative log-likelihood of the true class, in nats; None if a logit is not finite"""

    ece: float | None
    """Expected calibration error; None if a logit is not finite"""

    uncalibrated_ece: float | None
    """Expected calibration error at temperature 1"""

    temperature: float
    """Divides the ensemble's logits before probabilities are computed; ``nll`` and ``ece`` depend on it"""

    disagreement: float | None
    """Fraction of images for which two experts predict different classes, mean over pairs; None for one expert"""

    per_class: tuple[float | None, ...]
    """Accuracy of each class (C); None without test images"""

    test_counts: tuple[int, ...]
    """Test images of each class (C)"""

    shots: tuple[str, ...]
    """Group of each class (C): many, medium or few"""

    experts: tuple[Scores, ...]
    """Scores of each expert alone (E)"""

    confusion: NDArray[np.int64]
    """(C, C) images by true class (row) and predicted class (column)"""

    calibration: Calibration | None
    """The bins of ``ece``"""

    thresholds: ShotThresholds
    """Limits of the shot groups"""

    average: Average
    """How the ensemble averages the experts"""

    def frequent_confusions(self, limit: int = 20) -> list[dict[str, int]]:
        """Returns the most frequent errors as ``{"true": class, "predicted": class, "count": images}``."""
        true, predicted = np.nonzero(self.confusion)
        counts = self.confusion[true, predicted]
        errors = np.flatnonzero(true != predicted)
        most_frequent = errors[np.argsort(-counts[errors], kind="stable")[:limit]]
        return [{"true": int(true[i]), "predicted": int(predicted[i]), "count": int(counts[i])} for i in most_frequent]

    def as_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values; of the confusion matrix only the most frequent errors."""
        plain: dict[str, Any] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in vars(self).items()
            if name not in ("experts", "confusion", "calibration", "thresholds")
        }
        bins = self.calibration
        return plain | {
            "experts": [dict(vars(scores)) for scores in self.experts],
            "confusions": self.frequent_confusions(),
            "calibration": bins and {name: values.tolist() for name, values in bins._asdict().items()},
            "thresholds": self.thresholds._asdict(),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], confusion: NDArray[np.int64]) -> "Evaluation":
        """Returns the evaluation of which `as_dict` made ``content``, which has no confusion matrix."""
        names = cls.__dataclass_fields__.keys() & content.keys()
        plain = {name: tuple(content[name]) if isinstance(content[name], list) else content[name] for name in names}
        bins = content["calibration"]
        special = {
            "experts": tuple(Scores(**scores) for scores in content["experts"]),
            "calibration": bins and Calibration(**{name: torch.from_numpy(np.array(bins[name])) for name in bins}),
            "thresholds": ShotThresholds(**content["thresholds"]),
            "confusion": confusion,
        }
        return cls(**plain | special)


def confusion_counts(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Counts images by true class (row) and predicted class (column): (N,) and (N,) -> (C, C), int64."""
    cells = torch.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.view(num_classes, num_classes)


def calibration(confidences: Tensor, correct: Tensor, bins: int = 15) -> Calibration:
    """Sorts images into bins ``((m - 1) / bins, m / bins]`` of confidence: Guo et al. (2017), section 2.

    Args:
        confidences: probability of the predicted class, (N,).
        correct: whether the prediction is correct, (N,).
        bins: number of bins.
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
    thresholds: ShotThresholds = DEFAULT_THRESHOLDS,
    bins: int = 15,
    average: Average = "logits",
    temperature: float = 1.0,
) -> Evaluation:
    """Computes all metrics of the experts and of their ensemble for N images.

    Args:
        logits: (N, E, C), on the CPU.
        labels: (N,).
        class_counts: training images of each class, C numbers.
        thresholds: limits of the shot groups.
        bins: number of bins of the calibration error.
        average: how the ensemble averages the experts.
        temperature: divides the ensemble's logits before probabilities are computed.

    Raises:
        ValueError: there are no images, or shapes or labels do not match.

    Example:
        >>> logits = torch.tensor([[[3.0, 0, 0]], [[0, 2.0, 0]], [[1.0, 0, 0]]])  # three images, one expert
        >>> result = evaluate_logits(logits, torch.tensor([0, 1, 2]), class_counts=[500, 60, 5])
        >>> result.many, result.medium, result.few
        (1.0, 1.0, 0.0)
    """
    num_images, num_experts, num_classes = logits.shape
    if num_images == 0 or labels.shape != (num_images,):
        raise ValueError(f"{num_images} images and labels of shape {tuple(labels.shape)}; each image needs one label")
    if len(class_counts) != num_classes:
        raise ValueError(f"class_counts has {len(class_counts)} classes, but the logits have {num_classes}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels are from {labels.min()} to {labels.max()}; they must be from 0 to {num_classes - 1}")

    groups = shot_groups(class_counts, thresholds)
    ensembles = (ensemble(block, average) for block in torch.split(logits, BLOCK))
    images = image_metrics(ensembles, labels, temperature)
    predictions = images.predictions
    expert_predictions = logits.argmax(dim=2)  # (N, E)

    totals = torch.bincount(labels, minlength=num_classes)
    per_class = _per_class(predictions, labels, totals).tolist()
    nll = float(-images.log_likelihoods.mean())
    binned, uncalibrated = images.calibrations(labels, bins)
    first, second = torch.triu_indices(num_experts, num_experts, offset=1)  # all pairs of experts
    differ = (expert_predictions[:, first] != expert_predictions[:, second]).double()
    return Evaluation(
        **vars(_scores(predictions, labels, totals, groups)),
        num_images=num_images,
        top5=float(images.in_top5.double().mean()) if num_classes > 5 else None,
        nll=nll if math.isfinite(nll) else None,
        ece=binned.error if binned else None,
        uncalibrated_ece=uncalibrated.error if uncalibrated else None,
        temperature=temperature,
        disagreement=float(differ.mean()) if num_experts > 1 else None,
        per_class=tuple(None if math.isnan(accuracy) else accuracy for accuracy in per_class),
        test_counts=tuple(totals.tolist()),
        shots=tuple(np.select([groups[shot] for shot in SHOTS], SHOTS, default="").tolist()),
        experts=tuple(_scores(expert, labels, totals, groups) for expert in expert_predictions.unbind(dim=1)),
        confusion=confusion_counts(predictions, labels, num_classes).numpy(),
        calibration=binned,
        thresholds=thresholds,
        average=average,
    )


def score(
    predictions: Tensor,
    labels: Tensor,
    class_counts: Sequence[int],
    *,
    thresholds: ShotThresholds = DEFAULT_THRESHOLDS,
) -> Scores:
    """Computes the accuracies of predictions.

    Args:
        predictions: classes, (N,).
        labels: (N,).
        class_counts: training images of each class, C numbers.
        thresholds: limits of the shot groups.
    """
    totals = torch.bincount(labels, minlength=len(class_counts))
    return _scores(predictions, labels, totals, shot_groups(class_counts, thresholds))


class ImageMetrics(NamedTuple):
    """Metrics of each of N images: (N,) each."""

    predictions: Tensor
    """Class with the largest logit"""

    confidences: Tensor
    """Probability of the predicted class"""

    uncalibrated: Tensor
    """Probability of the predicted class at temperature 1"""

    log_likelihoods: Tensor
    """Log-probability of the true class"""

    in_top5: Tensor
    """Whether the true class has one of the five largest logits"""

    def calibrations(self, labels: Tensor, bins: int) -> tuple[Calibration | None, Calibration | None]:
        """Returns the calibration, also at temperature 1; None if a logit is not finite."""
        correct = self.predictions == labels
        with_temperature, without = (
            calibration(confidences, correct, bins) if confidences.isfinite().all() else None
            for confidences in (self.confidences, self.uncalibrated)
        )
        return with_temperature, without


def image_metrics(blocks: Iterable[Tensor], labels: Tensor, temperature: float = 1.0) -> ImageMetrics:
    """Computes the metrics of each image.

    Args:
        blocks: the ensemble's logits of N images, at most `BLOCK` images at a time: (B, C) each.
        labels: (N,).
        temperature: divides the logits before probabilities are computed.
    """
    pairs = zip(blocks, torch.split(labels, BLOCK), strict=True)
    by_block = [_image_metrics(logits, block_labels, temperature) for logits, block_labels in pairs]
    return ImageMetrics(*map(torch.cat, zip(*by_block, strict=True)))


def _image_metrics(logits: Tensor, labels: Tensor, temperature: float) -> ImageMetrics:
    """The ensemble's logits (B, C) keep their precision for the prediction, as in the model; averages need float64."""
    predictions = logits.argmax(dim=1)
    in_top5 = (logits.topk(min(5, logits.shape[1])).indices == labels[:, None]).any(dim=1)
    selected = torch.stack([predictions, labels], dim=1)
    uncalibrated, log_likelihoods = logits.double().log_softmax(dim=1).gather(1, selected).unbind(dim=1)
    confidences = uncalibrated
    if temperature != 1:
        scaled = (logits.double() / temperature).log_softmax(dim=1)
        confidences, log_likelihoods = scaled.gather(1, selected).unbind(dim=1)
    return ImageMetrics(predictions, confidences.exp(), uncalibrated.exp(), log_likelihoods, in_top5)


def _per_class(predictions: Tensor, labels: Tensor, totals: Tensor) -> Tensor:
    """Accuracy of each class (C,), float64; nan without test images."""
    hits = torch.bincount(labels[predictions == labels], minlength=len(totals))
    return hits.double() / totals


def _scores(predictions: Tensor, labels: Tensor, totals: Tensor, groups: Mapping[str, NDArray[np.bool_]]) -> Scores:
    per_class = _per_class(predictions, labels, totals)
    has_images = totals > 0

    def mean(classes: Tensor) -> float | None:
        return float(per_class[classes].mean()) if classes.any() else None

    return Scores(
        accuracy=float((predictions == labels).double().mean()),
        balanced=float(per_class[has_images].mean()),
        **{shot: mean(torch.from_numpy(mask) & has_images) for shot, mask in groups.items()},
    )
