"""The class shares that trained experts assume, derived from their settings."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.config.schema import Config
from longtail.data.samplers import POWERS, class_probabilities
from longtail.evaluation.label_shift.adjustment import learned_log_prior
from longtail.losses import LogitAdjustedLoss, log_prior
from longtail.losses.build import build_criterion
from longtail.utils.errors import InputError


class LearnedPrior(NamedTuple):
    """The class shares that experts assume."""

    log_prior: Tensor
    """(E, C) or (1, C), see `learned_log_prior`"""

    approximation: str
    """Why it is an approximation; empty if it is not known to be one"""


def learned_prior(config: Config, class_counts: Sequence[int], classifier: str, epoch: int) -> LearnedPrior:
    """Returns the class shares that a model trained with these settings assumes.

    Args:
        config: of the run.
        class_counts: training images of each class, C numbers.
        classifier: method by which the heads were made after the experts' training, or ""; all of them treat classes
            as equally common.
        epoch: up to which the experts were trained.

    Raises:
        InputError: a class has no training images.
    """
    if min(class_counts) < 1:
        label = list(class_counts).index(min(class_counts))
        raise InputError(f"class {label} has no training images, so the share that the experts assume is not known")
    if classifier:
        are_probabilities = classifier in ("retrain", "scale")
        doubt = "" if are_probabilities else f"outputs of {classifier} classifiers are not probabilities"
        return LearnedPrior(torch.zeros(1, len(class_counts)), doubt)
    loss, training, augmentation = config.loss, config.training, config.augmentation
    criterion = build_criterion(loss, list(class_counts), training.epochs, config.model.scale)
    exponents = {}
    if isinstance(criterion, LogitAdjustedLoss):
        exponents = {"prior_exponents": loss.prior_exponents, "inverse_exponents": loss.inverse_exponents}
    weights = criterion.weights if criterion.is_reweighted(epoch) else None
    learned = learned_log_prior(class_counts, class_weights=weights, **exponents)
    if training.sampling != "shuffled":
        power = POWERS.get(training.sampling, 0.0)  # progressive sampling ends class-balanced
        learned = learned + class_probabilities(class_counts, power).log().float() - log_prior(class_counts)
    doubts = {
        f"outputs trained with the {loss.name} loss are not probabilities": not criterion.learns_probabilities,
        "class weights were used late in training": weights is not None and criterion.reweight_after != 0,
        "sampling became class-balanced late in training": training.sampling == "progressive",
        "targets were mixed or smoothed": bool(augmentation.mixup or augmentation.cutmix or loss.label_smoothing),
        "experts were trained together, not each by itself": loss.collaborative,
        "the experts learned from a teacher": config.teacher is not None,
    }
    return LearnedPrior(learned, "; ".join(doubt for doubt, applies in doubts.items() if applies))
