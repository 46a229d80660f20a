"""Losses of several experts at once, as pure functions. Letters in shapes: B images, E experts, C classes."""

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
    num_experts = expert_logits.shape[1]
    if soft_targets is None:
        repeated = labels.repeat_interleave(num_experts)
        return num_experts * F.cross_entropy(expert_logits.flatten(0, 1), repeated, weight)
    losses = -(soft_targets[:, None] * F.log_softmax(expert_logits, dim=2)).sum(dim=(1, 2))
    return (losses if weight is None else losses * weight[labels]).mean()


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
