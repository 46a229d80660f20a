"""What several losses share. Letters in shapes: B images, E experts, C classes."""

import torch.nn.functional as F
from torch import Tensor


def per_expert(logits: Tensor) -> Tensor:
    """Returns logits (B, E, C) as they are, and logits (B, C) as those of one expert, (B, 1, C)."""
    return logits[:, None] if logits.dim() == 2 else logits


def cross_entropy(
    expert_logits: Tensor, labels: Tensor, weight: Tensor | None = None, soft_targets: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each expert, summed over experts and averaged over images: scalar.

    Args:
        expert_logits: (B, E, C).
        labels: (B,).
        weight: class weights (C,). With hard targets the mean over images is weighted. With soft targets the loss of
            each image is multiplied by the weight of its label, and the mean is not weighted (RIDE-Swin).
        soft_targets: target probabilities (B, C), for example from mixup or label smoothing; None: the labels.
    """
    return negative_mean(F.log_softmax(expert_logits, dim=2), labels, weight, soft_targets)


def negative_mean(scores: Tensor, labels: Tensor, weight: Tensor | None, soft_targets: Tensor | None) -> Tensor:
    """Minus the scores (B, E, C) of the targets, summed over experts and averaged over images as in `cross_entropy`."""
    if soft_targets is None:
        num_experts = scores.shape[1]
        return num_experts * F.nll_loss(scores.flatten(0, 1), labels.repeat_interleave(num_experts), weight)
    losses = -(soft_targets[:, None] * scores).sum(dim=(1, 2))
    return (losses if weight is None else losses * weight[labels]).mean()
