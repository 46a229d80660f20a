"""Consistency self-distillation: MDCS (Zhao et al., 2023).

Letters in shapes: B images, V views of each, E experts, C classes.
"""

from collections.abc import Hashable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses.base import Criterion
from longtail.losses.distillation import DistilledLoss
from longtail.losses.functional import per_expert


def self_distillation(weak_logits: Tensor, strong_logits: Tensor, labels: Tensor) -> Tensor:
    """KL(weak view || strong view) of each expert, averaged over the images whose weak view it classifies right.

    Summed over experts: scalar. An expert that classifies no image right adds 0. Gradients flow only through the strong
    view. It does not wait for the device. Zhao et al., 2023, consistency self-distillation.

    Args:
        weak_logits: (B, E, C), of weakly augmented images, adjusted as in the classification loss.
        strong_logits: (B, E, C), of the same images, strongly augmented.
        labels: (B,).
    """
    weak, strong = F.log_softmax(weak_logits.detach(), dim=2), F.log_softmax(strong_logits, dim=2)
    is_right = (weak.argmax(dim=2) == labels[:, None]).to(strong.dtype)
    distances = F.kl_div(strong, weak, reduction="none", log_target=True).sum(dim=2)
    return ((distances * is_right).sum(dim=0) / is_right.sum(dim=0).clamp(min=1)).sum()


class SelfDistilledLoss(nn.Module):
    """A criterion for several views of each image, plus `self_distillation` from the first view to the others.

    The criterion is averaged over the views.

    Args:
        criterion: for one view.
        factor: weight of `self_distillation`, which uses the logits that the criterion adjusts and is averaged over the
            views after the first.
        rampup: number of epochs in which the factor rises linearly; epoch ``rampup`` is the first with all of it.
    """

    def __init__(self, criterion: Criterion | DistilledLoss, *, factor: float = 0.6, rampup: int = 0):
        super().__init__()
        self.criterion = criterion
        self.factor = factor
        self.rampup = rampup

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        epoch: int,
        soft_targets: Tensor | None = None,
        rows: slice | None = None,
        *,
        teacher_logits: Tensor | None = None,
    ) -> Tensor:
        """Returns the loss, a scalar.

        If a batch is divided, self-distillation is averaged over the correctly classified images of each part, not of
        the full batch.

        Args:
            logits: (V * B, E, C), or (V * B, C) of one expert, with all images of one view after those of another.
            labels: see `Criterion.forward`.
            epoch: from 1.
            soft_targets: see `Criterion.forward`; the same for all views.
            rows: see `Criterion.forward`.
            teacher_logits: (V * B, C), for a `DistilledLoss`.
        """
        own_labels = labels if rows is None else labels[rows]
        views = per_expert(logits).chunk(len(logits) // len(own_labels))
        teachers: list[dict[str, Any]] = [{}] * len(views)
        if teacher_logits is not None:
            teachers = [{"teacher_logits": part} for part in teacher_logits.chunk(len(views))]
        losses = [
            self.criterion(view, labels, epoch, soft_targets, rows, **teacher)
            for view, teacher in zip(views, teachers, strict=True)
        ]
        loss: Tensor = sum(losses) / len(losses)
        if self.factor == 0 or len(views) == 1:
            return loss
        base = self.criterion.criterion if isinstance(self.criterion, DistilledLoss) else self.criterion
        weak, *others = (base.adjust(view, own_labels) for view in views)
        distance = sum(self_distillation(weak, strong, own_labels) for strong in others) / len(others)
        factor = self.factor * min(epoch / self.rampup, 1.0) if self.rampup else self.factor
        return loss + factor * distance

    def phase(self, epoch: int) -> Hashable:
        """As of `Criterion`."""
        return self.criterion.phase(epoch), min(epoch, self.rampup)
