"""Distillation from a teacher (Hinton et al., 2015). Letters in shapes: B images, E experts, C classes."""

from collections.abc import Hashable

import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses.base import Criterion
from longtail.losses.functional import per_expert


def distillation(expert_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.5) -> Tensor:
    """KL(teacher || expert), summed over experts and averaged over images, times the temperature squared: scalar.

    Hinton et al., 2015, section 2.

    Args:
        expert_logits: (B, E, C).
        teacher_logits: (B, C), without gradients.
        temperature: of experts and teacher.
    """
    experts = F.log_softmax(expert_logits / temperature, dim=2)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)[:, None].expand_as(experts)
    return temperature**2 * F.kl_div(experts, teacher, reduction="sum", log_target=True) / len(expert_logits)


class DistilledLoss(nn.Module):
    """A criterion plus the distance of the experts to a teacher.

    Args:
        criterion: the loss without a teacher.
        temperature: see `distillation`.
        factor: weight of the distance.
        published: the arithmetic of RIDE's code: the distance of the mean logits, and the sum of both terms times the
            number of experts. By default the distance is that of each expert, and the criterion counts once.
    """

    def __init__(self, criterion: Criterion, *, temperature: float = 1.5, factor: float = 1.0, published: bool = False):
        super().__init__()
        self.criterion = criterion
        self.temperature = temperature
        self.factor = factor
        self.published = published

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        epoch: int,
        soft_targets: Tensor | None = None,
        rows: slice | None = None,
        *,
        teacher_logits: Tensor,
    ) -> Tensor:
        """Returns the loss, a scalar. Arguments as in `Criterion.forward`, and the teacher's logits (B, C)."""
        expert_logits = per_expert(logits)
        loss: Tensor = self.criterion(expert_logits, labels, epoch, soft_targets, rows)
        if not self.published:
            return loss + self.factor * distillation(expert_logits, teacher_logits, self.temperature)
        mean = expert_logits.mean(dim=1, keepdim=True)
        distance = distillation(mean, teacher_logits, self.temperature)
        return expert_logits.shape[1] * (loss + self.factor * distance)

    def phase(self, epoch: int) -> Hashable:
        """As of `Criterion`."""
        return self.criterion.phase(epoch)
