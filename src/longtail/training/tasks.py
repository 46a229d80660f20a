"""What a batch is turned into: a task is the only thing the training loop knows of a method."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longtail.losses import Criterion, DistilledLoss, cross_entropy, router_loss, router_targets
from longtail.models.heads import classify
from longtail.models.multi_expert import MultiExpert
from longtail.models.router import Router
from longtail.runtime.precision import full_precision
from longtail.utils.ensembles import Average


class Step(NamedTuple):
    """The outcome of one batch, still on the device."""

    loss: Tensor
    """scalar"""

    correct: Tensor
    """scalar, images that were got right"""


class TrainExperts(nn.Module):
    """Stage 1: trunk, branches and heads are trained together."""

    def __init__(self, model: MultiExpert, criterion: Criterion | DistilledLoss):
        super().__init__()
        self.model = model
        self.criterion: Any = criterion

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        epoch: int,
        soft_targets: Tensor | None = None,
        *,
        batch_labels: Tensor | None = None,
    ) -> Step:
        """Images (B, 3, H, W), labels (B,), epoch from 1, perhaps soft targets (B, C).

        ``batch_labels`` (N,) are those of the whole batch where the images are a part of one.
        """
        output = self.model(images)
        also = self.known(images)
        with full_precision(images):
            loss = self.criterion(output.logits, labels, epoch, soft_targets, batch_labels, **also)
        correct = (output.ensemble.detach().argmax(dim=1) == labels).sum()
        return Step(loss, correct)

    def known(self, images: Tensor) -> dict[str, Tensor]:
        """What else the criterion needs of the images."""
        return {}


class DistillExperts(TrainExperts):
    """Stage 1 with a teacher.

    Args:
        model: the student.
        criterion: with the teacher's term.
        teach: normalised images (B, 3, H, W) to the teacher's logits (B, C), without gradients. A function and no
            module, so that it is not trained, saved, or wrapped for several GPUs.
    """

    def __init__(self, model: MultiExpert, criterion: DistilledLoss, teach: Callable[[Tensor], Tensor]):
        super().__init__(model, criterion)
        self.teach = teach

    def known(self, images: Tensor) -> dict[str, Tensor]:
        """What the teacher says."""
        return {"teacher_logits": self.teach(images)}


class TrainHeads(nn.Module):
    """Classifiers alone, each on the features of its frozen expert: Decoupling (Kang et al., 2020), section 4.

    Args:
        heads: features (B, D) to logits (B, C), one for each expert.
    """

    def __init__(self, heads: Sequence[nn.Module]):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(
        self, logits: Tensor, labels: Tensor, epoch: int, features: Tensor, *, batch_labels: Tensor | None = None
    ) -> Step:
        """What the experts' own heads say (B, E, C) is passed over; labels (B,), epoch from 1, features (B, E, D)."""
        pairs = zip(self.heads, features.unbind(dim=1), strict=True)
        own = torch.stack([classify(head, part)[0] for head, part in pairs], dim=1)
        correct = (own.detach().mean(dim=1).argmax(dim=1) == labels).sum()
        return Step(cross_entropy(own, labels), correct)


class TrainRouter(nn.Module):
    """The last stage: the router alone, on what the frozen experts say.

    Args:
        router: of the model.
        positive_weight: see `longtail.losses.router_loss`.
        average: what of the experts makes the answers that are to be right.
    """

    def __init__(self, router: Router, positive_weight: float, average: Average = "logits"):
        super().__init__()
        self.router = router
        self.positive_weight = positive_weight
        self.average: Average = average

    def forward(
        self, logits: Tensor, labels: Tensor, epoch: int, features: Tensor, *, batch_labels: Tensor | None = None
    ) -> Step:
        """Logits (B, E, C), labels (B,), epoch from 1, features (B, E, D); right are images right at every step."""
        answers = self.router(logits, features)
        targets = router_targets(logits, labels, self.average)
        right = ((answers.detach() > 0) == targets.bool()).all(dim=1)
        return Step(router_loss(answers, targets, self.positive_weight), right.sum())


def teaching(teacher: MultiExpert) -> Callable[[Tensor], Tensor]:
    """A trained model as `DistillExperts` needs it: its mean logits, in eval mode, without gradients."""
    teacher.eval().requires_grad_(False)

    def teach(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = teacher(images).ensemble
        return logits

    return teach
