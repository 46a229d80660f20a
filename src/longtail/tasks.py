"""What a batch is turned into: a task is the only thing the training loop knows of a method."""

from typing import NamedTuple

from torch import Tensor, nn

from longtail.losses import Criterion
from longtail.models.experts import MultiExpert


class Step(NamedTuple):
    """The outcome of one batch, still on the device."""

    loss: Tensor
    """scalar"""

    correct: Tensor
    """scalar, images that the ensemble got right"""


class TrainExperts(nn.Module):
    """Stage 1: trunk, branches and heads are trained together."""

    def __init__(self, model: MultiExpert, criterion: Criterion):
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, images: Tensor, labels: Tensor, epoch: int, soft_targets: Tensor | None = None) -> Step:
        """Images (B, 3, H, W), labels (B,), epoch from 1, and perhaps soft targets (B, C)."""
        output = self.model(images)
        loss = self.criterion(output.logits, labels, epoch, soft_targets)
        correct = (output.ensemble.detach().argmax(dim=1) == labels).sum()
        return Step(loss, correct)
