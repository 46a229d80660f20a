"""Knowledge of a teacher: pure function and criterion. Letters in shapes: B images, E experts, C classes."""

import torch.nn.functional as F
from torch import Tensor, nn

from longtail.losses.criteria import Criterion


def distillation(expert_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.5) -> Tensor:
    """KL(teacher || expert), summed over experts, averaged over images, times the temperature squared.

    Distilling the knowledge in a neural network (Hinton et al., 2015), section 2.

    Args:
        expert_logits: (B, E, C).
        teacher_logits: (B, C), taken as constants.
        temperature: of both.
    """
    experts = F.log_softmax(expert_logits / temperature, dim=2)
    teacher = F.log_softmax(teacher_logits.detach() / temperature, dim=1)[:, None].expand_as(experts)
    return temperature**2 * F.kl_div(experts, teacher, reduction="sum", log_target=True) / len(expert_logits)


class DistilledLoss(nn.Module):
    """Another criterion, and the distance to a teacher.

    Args:
        criterion: what experts are trained for without a teacher.
        temperature: see `distillation`.
        factor: weight of the teacher's term.
        published: RIDE's own arithmetic: the distance of the experts' mean logits, and everything once per expert. By
            default each expert has its own distance and the criterion counts once.
    """

    def __init__(self, criterion: Criterion, *, temperature: float = 1.5, factor: float = 1.0, published: bool = False):
        super().__init__()
        self.criterion = criterion
        self.temperature = temperature
        self.factor = factor
        self.published = published

    def forward(
        self,
        expert_logits: Tensor,
        labels: Tensor,
        epoch: int,
        soft_targets: Tensor | None = None,
        batch_labels: Tensor | None = None,
        *,
        teacher_logits: Tensor,
    ) -> Tensor:
        """As the criterion without a teacher, and the teacher's logits (B, C) -> scalar."""
        loss = self.criterion(expert_logits, labels, epoch, soft_targets, batch_labels)
        if not self.published:
            return loss + self.factor * distillation(expert_logits, teacher_logits, self.temperature)
        mean = expert_logits.mean(dim=1, keepdim=True)
        distance = distillation(mean, teacher_logits, self.temperature)
        return expert_logits.shape[1] * (loss + self.factor * distance)
