"""Losses of several experts at once, as pure functions. Letters in shapes: B images, E experts, C classes."""

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(
    expert_logits: Tensor, labels: Tensor, weight: Tensor | None = None, soft_targets: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each expert by itself, summed over experts and averaged over images.

    Args:
        expert_logits: (B, E, C).
        labels: class of each image, (B,).
        weight: class weights (C,). With hard targets the average over images is weighted too; with soft ones each
            image counts by the weight of its label, and the average is plain (RIDE-Swin).
        soft_targets: probabilities to learn (B, C), as mixup and label smoothing make them; by default those of the
            labels.
    """
    return _negative_mean(F.log_softmax(expert_logits, dim=2), labels, weight, soft_targets)


def focal(
    expert_logits: Tensor,
    labels: Tensor,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    soft_targets: Tensor | None = None,
) -> Tensor:
    """Focal loss of each expert, summed over experts: what is classified well already counts less.

    ``-(1 - p)^gamma log p`` for the probability p of the target. Focal loss (Lin et al., 2017), equations 4 and 5, for
    any number of classes.

    Args:
        expert_logits: (B, E, C).
        labels: (B,).
        gamma: 0 is `cross_entropy`.
        weight: class weights (C,), the paper's alpha; averages as in `cross_entropy`.
        soft_targets: (B, C), shares of the losses that each class would have as the target.
    """
    log_probabilities = F.log_softmax(expert_logits, dim=2)
    return _negative_mean(focused(log_probabilities, gamma), labels, weight, soft_targets)


def focused(log_probabilities: Tensor, gamma: float) -> Tensor:
    """``(1 - p)^gamma log p`` from log p, of any shape. Focal loss (Lin et al., 2017), equation 4."""
    # At p = 1 the slope of (1 - p)^gamma is infinite for gamma below 1.
    missing = (-log_probabilities.expm1()).clamp_min(torch.finfo(log_probabilities.dtype).tiny)
    return missing**gamma * log_probabilities


def _negative_mean(scores: Tensor, labels: Tensor, weight: Tensor | None, soft_targets: Tensor | None) -> Tensor:
    """Minus the targets' scores (B, E, C), summed over experts, averaged over images as `cross_entropy` says."""
    if soft_targets is None:
        num_experts = scores.shape[1]
        return num_experts * F.nll_loss(scores.flatten(0, 1), labels.repeat_interleave(num_experts), weight)
    losses = -(soft_targets[:, None] * scores).sum(dim=(1, 2))
    return (losses if weight is None else losses * weight[labels]).mean()


def adjust_logits(expert_logits: Tensor, log_prior: Tensor, tau: Tensor | float = 1.0) -> Tensor:
    """Adds ``tau`` times the log prior: (B, E, C) -> (B, E, C).

    Within the loss it lets an expert learn what is left when ``tau`` times the prior is taken away: 0 fits the long
    tail as it is, 1 balanced classes (balanced softmax: Ren et al., 2020, equation 3), more than 1 a tail the other way
    round. Any number: logit adjustment (Menon et al., 2021, equation 10). One for each expert: BalPoE (Aimar et al.,
    2023), whose lambda is 1 - tau; the mean of the logits is for balanced classes when the mean of tau is 1.

    With ``-tau``, on logits that were trained without it: post-hoc adjustment (Menon et al., equation 9).

    Args:
        expert_logits: (B, E, C), or any (..., C) where ``tau`` is a number.
        log_prior: (C,), see `longtail.losses.log_prior`.
        tau: a number, or one for each expert (E,).
    """
    return expert_logits + (tau[:, None] * log_prior if isinstance(tau, Tensor) else tau * log_prior)


def subtract_margins(expert_logits: Tensor, labels: Tensor, margins: Tensor, scale: float = 30.0) -> Tensor:
    """Lowers the logit of the labelled class by ``scale`` times its margin: (B, E, C) -> (B, E, C)."""
    index = labels[:, None, None].expand(-1, expert_logits.shape[1], 1)
    lowered = -scale * margins[index].to(expert_logits.dtype)
    return expert_logits.scatter_add(2, index, lowered)


def ldam(
    expert_logits: Tensor,
    labels: Tensor,
    margins: Tensor,
    scale: float = 30.0,
    weight: Tensor | None = None,
    soft_targets: Tensor | None = None,
) -> Tensor:
    """Label-distribution-aware margin loss of each expert, summed over experts: LDAM (Cao et al., 2019), section 3.2.

    Args:
        expert_logits: (B, E, C), already multiplied by the scale.
        labels: (B,), whose logits the margins lower, also where targets are soft.
        margins: (C,), see `ldam_margins`.
        scale: of the logits.
        weight: class weights (C,).
        soft_targets: (B, C), see `cross_entropy`.
    """
    return cross_entropy(subtract_margins(expert_logits, labels, margins, scale), labels, weight, soft_targets)


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
