"""LDAM (Cao et al., 2019): margins that grow with rarity. Letters in shapes: B images, E experts, C classes."""

from collections.abc import Sequence

from torch import Tensor

from longtail.losses.base import Criterion, register
from longtail.losses.class_counts import ldam_margins
from longtail.losses.functional import cross_entropy


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
    """Label-distribution-aware margin loss of each expert, summed over experts and averaged over images: scalar.

    Cao et al., 2019, section 3.2.

    Args:
        expert_logits: (B, E, C), already multiplied by the scale.
        labels: (B,). The margins lower the logits of the labels, even if the targets are soft.
        margins: (C,), see `ldam_margins`.
        scale: of the logits.
        weight: class weights (C,), see `cross_entropy`.
        soft_targets: (B, C), see `cross_entropy`.
    """
    return cross_entropy(subtract_margins(expert_logits, labels, margins, scale), labels, weight, soft_targets)


@register("ldam")
class LDAMLoss(Criterion):
    """LDAM of each expert; with deferred re-weighting LDAM-DRW (Cao et al., 2019).

    Args:
        class_counts: training images of each class, C numbers.
        max_margin: margin of the rarest class.
        scale: of the logits.
        reweight_after: see `Criterion`.
        reweight_beta: see `Criterion`.
        collaborative: see `Criterion`.

    Example:
        >>> import torch
        >>> criterion = LDAMLoss([500, 120, 9], reweight_after=160)
        >>> logits, labels = torch.zeros(4, 3), torch.tensor([0, 0, 1, 2])
        >>> print(f"{criterion(logits, labels, epoch=1):.3f}")
        9.154
    """

    learns_probabilities = False
    margins: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweight_after: int | None = None,
        reweight_beta: float = 0.9999,
        collaborative: bool = False,
    ):
        super().__init__(
            class_counts, reweight_after=reweight_after, reweight_beta=reweight_beta, collaborative=collaborative
        )
        self.scale = scale
        self.register_buffer("margins", ldam_margins(class_counts, max_margin), persistent=False)

    def adjust(self, expert_logits: Tensor, labels: Tensor) -> Tensor:
        """Subtracts the margins."""
        return subtract_margins(expert_logits, labels, self.margins, self.scale)
