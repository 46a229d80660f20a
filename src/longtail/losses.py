"""Losses for long-tailed data: pure functions of tensors, and thin criteria that hold the constants.

Letters in shapes: B images, E experts, C classes.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.errors import InputError


def ldam_margins(class_counts: Sequence[int], max_margin: float = 0.5) -> Tensor:
    """Margin of each class, ``max_margin`` for the rarest and falling as n^(-1/4): (C,).

    LDAM (Cao et al., 2019), section 3.1.
    """
    margins = torch.as_tensor(class_counts, dtype=torch.float64) ** -0.25
    return (margins * (max_margin / margins.max())).float()


def effective_number_weights(class_counts: Sequence[int], beta: float = 0.9999) -> Tensor:
    """Class weights ``(1 - beta) / (1 - beta^n)``, scaled to mean 1: (C,).

    Class-balanced loss (Cui et al., 2019), section 3.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    weights = (1 - beta) / (1 - beta**counts)
    return (weights / weights.mean()).float()


def class_temperatures(class_counts: Sequence[int], spread: float = 0.05) -> Tensor:
    """Relative temperature of each class in the diversity loss, 1 for the most common: (C,).

    With p the classes' shares of the images, ``C * p * spread + 1 - spread`` over its maximum.
    RIDE (Wang et al., 2021), section 3.

    Raises:
        InputError: the spread is so large that a temperature is not above 0.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    temperatures = len(counts) * counts / counts.sum() * spread + 1 - spread
    if not (temperatures > 0).all():
        raise InputError(f"temperature spread {spread}: too large for these class counts, a temperature would be <= 0")
    return (temperatures / temperatures.max()).float()


def cross_entropy(expert_logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy of each expert by itself, summed over experts and averaged over images.

    Args:
        expert_logits: (B, E, C).
        targets: class of each image, (B,).
        weight: class weights (C,). The average over images is then weighted too.
    """
    num_experts = expert_logits.shape[1]
    repeated = targets.repeat_interleave(num_experts)
    return num_experts * F.cross_entropy(expert_logits.flatten(0, 1), repeated, weight)


def subtract_margins(expert_logits: Tensor, targets: Tensor, margins: Tensor, scale: float = 30.0) -> Tensor:
    """Lowers the logit of the true class by ``scale`` times its margin: (B, E, C) -> (B, E, C)."""
    index = targets[:, None, None].expand(-1, expert_logits.shape[1], 1)
    lowered = -scale * margins[index].to(expert_logits.dtype)
    return expert_logits.scatter_add(2, index, lowered)


def ldam(
    expert_logits: Tensor, targets: Tensor, margins: Tensor, scale: float = 30.0, weight: Tensor | None = None
) -> Tensor:
    """Label-distribution-aware margin loss of each expert, summed over experts: LDAM (Cao et al., 2019), section 3.2.

    Args:
        expert_logits: (B, E, C), already multiplied by the scale.
        targets: (B,).
        margins: (C,), see `ldam_margins`.
        scale: of the logits.
        weight: class weights (C,).
    """
    return cross_entropy(subtract_margins(expert_logits, targets, margins, scale), targets, weight)


def divergence(expert_logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """KL(ensemble || expert), summed over experts and averaged over images, times the mean temperature squared.

    The ensemble is a constant here: experts move away from it (or towards it), it does not come along.
    RIDE (Wang et al., 2021), section 3.

    Args:
        expert_logits: (B, E, C).
        temperature: one for all, or one for each class (C,).
    """
    mean_temperature = temperature.mean() if isinstance(temperature, Tensor) else temperature
    experts = F.log_softmax(expert_logits / temperature, dim=2)
    ensemble = F.log_softmax(expert_logits.detach().mean(dim=1, keepdim=True) / temperature, dim=2)
    total = F.kl_div(experts, ensemble.expand_as(experts), reduction="sum", log_target=True)
    return mean_temperature**2 * total / len(expert_logits)


class Criterion(Protocol):
    """Expert logits (B, E, C), targets (B,) and the epoch, counted from 1, to a scalar loss."""

    def __call__(self, expert_logits: Tensor, targets: Tensor, epoch: int) -> Tensor: ...  # noqa: D102


class CrossEntropyLoss(nn.Module):
    """Cross-entropy of every expert, with class weights once ``epoch > reweight_after`` (deferred re-weighting).

    Args:
        class_counts: training images of each class, C numbers.
        reweight_after: last epoch without class weights; None: never any.
        reweight_beta: see `effective_number_weights`.
        collaborative: the loss of the mean logits instead of each expert's own, once per expert.
    """

    weights: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        reweight_after: int | None = None,
        reweight_beta: float = 0.9999,
        collaborative: bool = False,
    ):
        super().__init__()
        self.reweight_after = reweight_after
        self.collaborative = collaborative
        self.register_buffer("weights", effective_number_weights(class_counts, reweight_beta), persistent=False)

    def is_reweighted(self, epoch: int) -> bool:
        """Whether the deferred part of training has begun."""
        return self.reweight_after is not None and epoch > self.reweight_after

    def forward(self, expert_logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """(B, E, C) and (B,) -> scalar."""
        if self.collaborative:
            expert_logits = expert_logits.mean(dim=1, keepdim=True).expand_as(expert_logits)
        return self.classify(expert_logits, targets, self.weights if self.is_reweighted(epoch) else None)

    def classify(self, expert_logits: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """The term that makes experts accurate."""
        return cross_entropy(expert_logits, targets, weight)


class LDAMLoss(CrossEntropyLoss):
    """Margins that grow with rarity, and deferred re-weighting: LDAM-DRW (Cao et al., 2019).

    Args:
        class_counts: C numbers.
        max_margin: margin of the rarest class.
        scale: of the logits.
        deferred: further arguments of `CrossEntropyLoss`.
    """

    margins: Tensor

    def __init__(self, class_counts: Sequence[int], *, max_margin: float = 0.5, scale: float = 30.0, **deferred: Any):
        super().__init__(class_counts, **deferred)
        self.scale = scale
        self.register_buffer("margins", ldam_margins(class_counts, max_margin), persistent=False)

    def classify(self, expert_logits: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        """LDAM."""
        return ldam(expert_logits, targets, self.margins, self.scale, weight)


class RIDELoss(LDAMLoss):
    """LDAM-DRW of every expert plus a reward for diversity: RIDE (Wang et al., 2021), section 3.

    Args:
        class_counts: C numbers.
        diversity_factor: weight of `divergence`; negative drives experts apart.
        diversity_temperature: its temperature.
        temperature_spread: see `class_temperatures`; they differ between classes once re-weighting has begun.
        margins: further arguments of `LDAMLoss`.
    """

    temperatures: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        diversity_factor: float = -0.45,
        diversity_temperature: float = 1.0,
        temperature_spread: float = 0.05,
        **margins: Any,
    ):
        super().__init__(class_counts, **margins)
        self.diversity_factor = diversity_factor
        self.diversity_temperature = diversity_temperature
        temperatures = diversity_temperature * class_temperatures(class_counts, temperature_spread)
        self.register_buffer("temperatures", temperatures, persistent=False)

    def forward(self, expert_logits: Tensor, targets: Tensor, epoch: int) -> Tensor:
        """(B, E, C) and (B,) -> scalar."""
        loss = super().forward(expert_logits, targets, epoch)
        if self.diversity_factor == 0:
            return loss
        temperature = self.temperatures if self.is_reweighted(epoch) else self.diversity_temperature
        return loss + self.diversity_factor * divergence(expert_logits, temperature)
