"""Losses for long-tailed data, for any training loop: pure functions of tensors, and criteria that hold the constants.

A new loss is one new module, with a function and a criterion::

    @register("my-loss")
    class MyLoss(Criterion): ...
"""

from longtail.losses.base import Criterion as Criterion
from longtail.losses.base import register as register
from longtail.losses.class_counts import class_temperatures as class_temperatures
from longtail.losses.class_counts import effective_number_weights as effective_number_weights
from longtail.losses.class_counts import inverse_log_prior as inverse_log_prior
from longtail.losses.class_counts import ldam_margins as ldam_margins
from longtail.losses.class_counts import log_prior as log_prior
from longtail.losses.cross_entropy import CrossEntropyLoss as CrossEntropyLoss
from longtail.losses.distillation import DistilledLoss as DistilledLoss
from longtail.losses.distillation import distillation as distillation
from longtail.losses.focal import FocalLoss as FocalLoss
from longtail.losses.focal import focal as focal
from longtail.losses.focal import focused as focused
from longtail.losses.functional import cross_entropy as cross_entropy
from longtail.losses.ldam import LDAMLoss as LDAMLoss
from longtail.losses.ldam import ldam as ldam
from longtail.losses.ldam import subtract_margins as subtract_margins
from longtail.losses.logit_adjustment import LogitAdjustedLoss as LogitAdjustedLoss
from longtail.losses.logit_adjustment import adjust_logits as adjust_logits
from longtail.losses.ride import RIDELoss as RIDELoss
from longtail.losses.ride import divergence as divergence
from longtail.losses.router import router_loss as router_loss
from longtail.losses.router import router_targets as router_targets
from longtail.losses.self_distillation import SelfDistilledLoss as SelfDistilledLoss
from longtail.losses.self_distillation import self_distillation as self_distillation
