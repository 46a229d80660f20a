"""Losses for long-tailed data: pure functions of tensors, and thin criteria that hold the constants.

They know tensors only, and work in any training loop.
"""

from longtail.losses.class_counts import (
    class_temperatures,
    effective_number_weights,
    inverse_log_prior,
    ldam_margins,
    log_prior,
)
from longtail.losses.criteria import Criterion, CrossEntropyLoss, FocalLoss, LDAMLoss, LogitAdjustedLoss, RIDELoss
from longtail.losses.distillation import DistilledLoss, distillation
from longtail.losses.functional import adjust_logits, cross_entropy, divergence, focal, focused, ldam, subtract_margins
from longtail.losses.router import router_loss, router_targets

__all__ = [
    "Criterion",
    "CrossEntropyLoss",
    "DistilledLoss",
    "FocalLoss",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "RIDELoss",
    "adjust_logits",
    "class_temperatures",
    "cross_entropy",
    "distillation",
    "divergence",
    "effective_number_weights",
    "focal",
    "focused",
    "inverse_log_prior",
    "ldam",
    "ldam_margins",
    "log_prior",
    "router_loss",
    "router_targets",
    "subtract_margins",
]
