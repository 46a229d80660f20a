"""What experts are trained for: thin modules that hold the constants of the losses and know the epoch."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from longtail.losses.class_counts import (
    class_temperatures,
    effective_number_weights,
    inverse_log_prior,
    ldam_margins,
    log_prior,
)
from longtail.losses.functional import adjust_logits, cross_entropy, divergence, focal, ldam


class Criterion(Protocol):
    """Expert logits (B, E, C), labels (B,), the epoch from 1, and perhaps soft targets (B, C), to a scalar loss.

    Where the images are a part of a batch, its other parts being computed later or elsewhere, ``batch_labels`` (N,) are
    those of the whole batch: averages are then weighted so that the mean over the parts, by their sizes, is the loss of
    the batch.
    """

    def __call__(  # noqa: D102
        self,
        expert_logits: Tensor,
        labels: Tensor,
        epoch: int,
        soft_targets: Tensor | None = None,
        batch_labels: Tensor | None = None,
    ) -> Tensor: ...


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

    def forward(
        self,
        expert_logits: Tensor,
        labels: Tensor,
        epoch: int,
        soft_targets: Tensor | None = None,
        batch_labels: Tensor | None = None,
    ) -> Tensor:
        """(B, E, C), (B,), perhaps (B, C) and (N,), see `Criterion` -> scalar."""
        logits = expert_logits
        if self.collaborative:
            logits = expert_logits.mean(dim=1, keepdim=True).expand_as(expert_logits)
        weight = self.weights if self.is_reweighted(epoch) else None
        loss = self.base_loss(logits, labels, weight, soft_targets)
        if weight is not None and batch_labels is not None and soft_targets is None:
            # The loss was divided by the mean weight of these images; that of the batch is meant.
            loss = loss * (weight[labels].mean() / weight[batch_labels].mean())
        regularizer = self.regularizer(expert_logits, epoch)
        return loss if regularizer is None else loss + regularizer

    def regularizer(self, expert_logits: Tensor, epoch: int) -> Tensor | None:
        """What is asked of the experts besides being accurate, a mean over images; None: nothing."""
        return None

    def base_loss(
        self, expert_logits: Tensor, labels: Tensor, weight: Tensor | None, soft_targets: Tensor | None
    ) -> Tensor:
        """The term that makes experts accurate."""
        return cross_entropy(expert_logits, labels, weight, soft_targets)


class FocalLoss(CrossEntropyLoss):
    """Cross-entropy that counts less what is classified well already (Lin et al., 2017).

    Args:
        class_counts: C numbers.
        gamma: see `focal`.
        deferred: further arguments of `CrossEntropyLoss`.
    """

    def __init__(self, class_counts: Sequence[int], *, gamma: float = 2.0, **deferred: Any):
        super().__init__(class_counts, **deferred)
        self.gamma = gamma

    def base_loss(
        self, expert_logits: Tensor, labels: Tensor, weight: Tensor | None, soft_targets: Tensor | None
    ) -> Tensor:
        """Focal loss."""
        return focal(expert_logits, labels, self.gamma, weight, soft_targets)


class LogitAdjustedLoss(CrossEntropyLoss):
    """Cross-entropy of adjusted logits; by its arguments one of several methods, see `adjust_logits`.

    Balanced softmax by default; logit adjustment with another exponent; BalPoE with ``prior_exponents=(0, 1, 2)``;
    SADE (Zhang et al., 2022) with ``prior_exponents=(0, 1, 1), inverse_exponents=(0, 0, -2)``.

    Args:
        class_counts: C numbers.
        prior_exponents: times that the log prior is added, one number or one for each expert.
        inverse_exponents: likewise for the inverse log prior, see `inverse_log_prior`.
        deferred: further arguments of `CrossEntropyLoss`.
    """

    log_prior: Tensor
    inverse_log_prior: Tensor
    prior_exponents: Tensor
    inverse_exponents: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        prior_exponents: Sequence[float] = (1.0,),
        inverse_exponents: Sequence[float] = (0.0,),
        **deferred: Any,
    ):
        super().__init__(class_counts, **deferred)
        for name, constant in {
            "log_prior": log_prior(class_counts),
            "inverse_log_prior": inverse_log_prior(class_counts),
            "prior_exponents": torch.tensor(prior_exponents, dtype=torch.float32),
            "inverse_exponents": torch.tensor(inverse_exponents, dtype=torch.float32),
        }.items():
            self.register_buffer(name, constant, persistent=False)

    def base_loss(
        self, expert_logits: Tensor, labels: Tensor, weight: Tensor | None, soft_targets: Tensor | None
    ) -> Tensor:
        """Cross-entropy of the adjusted logits."""
        adjusted = adjust_logits(expert_logits, self.log_prior, self.prior_exponents)
        adjusted = adjust_logits(adjusted, self.inverse_log_prior, self.inverse_exponents)
        return cross_entropy(adjusted, labels, weight, soft_targets)


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

    def base_loss(
        self, expert_logits: Tensor, labels: Tensor, weight: Tensor | None, soft_targets: Tensor | None
    ) -> Tensor:
        """LDAM."""
        return ldam(expert_logits, labels, self.margins, self.scale, weight, soft_targets)


class RIDELoss(LDAMLoss):
    """LDAM-DRW of every expert plus a reward for diversity: RIDE (Wang et al., 2021), section 3.

    Args:
        class_counts: C numbers.
        diversity_factor: weight of `divergence`; negative drives experts apart.
        diversity_mean: divide it by the number of experts, as RIDE-Swin does; RIDE sums over experts.
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
        diversity_mean: bool = False,
        diversity_temperature: float = 1.0,
        temperature_spread: float = 0.05,
        **margins: Any,
    ):
        super().__init__(class_counts, **margins)
        self.diversity_factor = diversity_factor
        self.diversity_mean = diversity_mean
        self.diversity_temperature = diversity_temperature
        temperatures = diversity_temperature * class_temperatures(class_counts, temperature_spread)
        self.register_buffer("temperatures", temperatures, persistent=False)

    def regularizer(self, expert_logits: Tensor, epoch: int) -> Tensor | None:
        """The reward for diversity."""
        if self.diversity_factor == 0:
            return None
        factor = self.diversity_factor / expert_logits.shape[1] if self.diversity_mean else self.diversity_factor
        temperature = self.temperatures if self.is_reweighted(epoch) else self.diversity_temperature
        return factor * divergence(expert_logits, temperature)
