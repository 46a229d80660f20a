"""Focal loss (Lin et al., 2017). Letters in shapes: B images, E experts, C classes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from longtail.losses.base import Criterion, register
from longtail.losses.functional import negative_mean


def focal(
    expert_logits: Tensor,
    labels: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    soft_targets: Tensor | None = None,
) -> Tensor:
    """Focal loss of each expert, summed over experts and averaged over images: scalar.

    ``-(1 - p)^gamma log p`` for the probability p of the target, which gives well-classified images little weight.
    Lin et al., 2017, equations 4 and 5, for any number of classes.

    Args:
        expert_logits: (B, E, C).
        labels: (B,).
        gamma: focusing parameter; with 0 the loss is `cross_entropy`.
        weight: class weights (C,), the paper's alpha; see `cross_entropy` for the mean.
        soft_targets: (B, C), shares of the losses that each class would have as the target.
    """
    log_probabilities = F.log_softmax(expert_logits, dim=2)
    return negative_mean(focused(log_probabilities, gamma), labels, weight, soft_targets)


def focused(log_probabilities: Tensor, gamma: float) -> Tensor:
    """Returns ``(1 - p)^gamma log p`` from log p, of any shape. Lin et al., 2017, equation 4."""
    # At p = 1 the slope of (1 - p)^gamma is infinite for gamma below 1.
    missing = (-log_probabilities.expm1()).clamp_min(torch.finfo(log_probabilities.dtype).tiny)
    return missing**gamma * log_probabilities


@register("focal", gamma="focal_gamma")
class FocalLoss(Criterion):
    """Focal loss of each expert (Lin et al., 2017).

    Args:
        class_counts: training images of each class, C numbers.
        gamma: focusing parameter, see `focal`.
        reweight_after: see `Criterion`.
        reweight_beta: see `Criterion`.
        collaborative: see `Criterion`.
    """

    learns_probabilities = False

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        gamma: float = 2.0,
        reweight_after: int | None = None,
        reweight_beta: float = 0.9999,
        collaborative: bool = False,
    ):
        super().__init__(
            class_counts, reweight_after=reweight_after, reweight_beta=reweight_beta, collaborative=collaborative
        )
        self.gamma = gamma

    def base_loss(
        self, expert_logits: Tensor, labels: Tensor, weight: Tensor | None, soft_targets: Tensor | None
    ) -> Tensor:
        """See `focal`."""
        return focal(expert_logits, labels, self.gamma, weight, soft_targets)
