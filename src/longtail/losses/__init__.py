"""Losses for long-tailed data: pure functions of tensors, and thin criteria that hold the constants.

They know tensors only, and work in any training loop.
"""

from longtail.losses.class_counts import class_temperatures, effective_number_weights, ldam_margins
from longtail.losses.criteria import Criterion, CrossEntropyLoss, LDAMLoss, RIDELoss
from longtail.losses.distillation import DistilledLoss, distillation
from longtail.losses.experts import cross_entropy, divergence, ldam, subtract_margins
from longtail.losses.router import router_loss, router_targets

__all__ = [
    "Criterion",
    "CrossEntropyLoss",
    "DistilledLoss",
    "LDAMLoss",
    "RIDELoss",
    "class_temperatures",
    "cross_entropy",
    "distillation",
    "divergence",
    "effective_number_weights",
    "ldam",
    "ldam_margins",
    "router_loss",
    "router_targets",
    "subtract_margins",
]
