"""Tasks: a task turns a batch into a loss. It is all that the training loop knows of a method."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longtail.data.loaders import Batch
from longtail.losses import Criterion, DistilledLoss, SelfDistilledLoss, cross_entropy, router_loss, router_targets
from longtail.models.heads import classify_each
from longtail.models.multi_expert import ExpertOutput, MultiExpert
from longtail.models.router import Router
from longtail.runtime.precision import full_precision
from longtail.training.frozen_part import batch_norms
from longtail.utils.choices import Average


class Step(NamedTuple):
    """The result of one batch, still on the device."""

    loss: Tensor
    """scalar"""

    correct: Tensor
    """scalar, number of images that are classified correctly"""


class TrainExperts(nn.Module):
    """Stage 1: trains trunk, branches and heads together, or some of them.

    Args:
        model: all or a part of it is trained.
        criterion: the loss.
        compute: the inputs of a batch to the outputs of all experts; by default, images through the model.
        fixed: modules that stay in eval mode.
        teach: normalised images (B, 3, H, W) to a teacher's logits (B, C), without gradients, for a criterion with the
            teacher's term. A function and not a module, so that it is not trained, saved, or wrapped for several GPUs.
            Not used if batches hold its logits.
    """

    def __init__(
        self,
        model: MultiExpert,
        criterion: Criterion | DistilledLoss | SelfDistilledLoss,
        compute: Callable[[Tensor], ExpertOutput] | None = None,
        fixed: Sequence[nn.Module] = (),
        teach: Callable[[Tensor], Tensor] | None = None,
    ):
        super().__init__()
        self.model = model
        self.criterion: Any = criterion
        self.compute, self.fixed, self.teach = compute, tuple(fixed), teach

    def train(self, mode: bool = True) -> "TrainExperts":
        """Sets the mode of all modules but the fixed ones."""
        super().train(mode)
        for module in self.fixed:
            module.eval()
        return self

    def forward(self, batch: Batch, epoch: int) -> Step:
        """A batch of images, and the epoch from 1, to its loss."""
        output: ExpertOutput = (self.compute or self.model)(batch.inputs)
        extra = {}
        if self.teach is not None:
            teacher_logits = batch.teacher_logits
            extra["teacher_logits"] = self.teach(batch.inputs) if teacher_logits is None else teacher_logits
        with full_precision(batch.inputs):
            loss = self.criterion(output.logits, batch.labels, epoch, batch.soft_targets, batch.rows, **extra)
        labels = batch.own_labels
        # Of the first view, if there are several.
        correct = (output.ensemble.detach()[: len(labels)].argmax(dim=1) == labels).sum()
        return Step(loss, correct)


class TrainHeads(nn.Module):
    """Trains the heads alone, each on the features of its frozen expert: Decoupling (Kang et al., 2020), section 4.

    Args:
        heads: features (B, D) to logits (B, C), one head for each expert.
    """

    def __init__(self, heads: Sequence[nn.Module]):
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, batch: Batch, epoch: int) -> Step:
        """A batch whose inputs are the `ExpertOutput` of the frozen experts; their own logits are not used."""
        logits, labels = classify_each(self.heads, batch.inputs.features)[0], batch.own_labels
        correct = (logits.detach().mean(dim=1).argmax(dim=1) == labels).sum()
        return Step(cross_entropy(logits, labels), correct)


class TrainRouter(nn.Module):
    """Trains the router alone, on the outputs of the frozen experts. RIDE (Wang et al., 2021), section 3.

    Args:
        router: of the model.
        positive_weight: see `longtail.losses.router_loss`.
        average: how the model averages its experts.
    """

    def __init__(self, router: Router, positive_weight: float, average: Average = "logits"):
        super().__init__()
        self.router = router
        self.positive_weight = positive_weight
        self.average: Average = average

    def forward(self, batch: Batch, epoch: int) -> Step:
        """A batch whose inputs are the `ExpertOutput` of the frozen experts. Correct: routed correctly at each step."""
        output = batch.inputs
        router_logits = self.router(output.logits, output.features)
        targets = router_targets(output.logits, batch.own_labels, self.average)
        correct = ((router_logits.detach() > 0) == targets.bool()).all(dim=1)
        return Step(router_loss(router_logits, targets, self.positive_weight), correct.sum())


def teacher_function(teacher: MultiExpert, batch_statistics: bool = False) -> Callable[[Tensor], Tensor]:
    """Returns a trained model as `TrainExperts` needs it: images to ensemble logits, without gradients.

    Args:
        teacher: it is changed in place.
        batch_statistics: its batch norms use the mean and variance of the images, as in RIDE's code, and not those of
            its training.
    """
    teacher.eval().requires_grad_(False)
    for module in batch_norms(teacher) if batch_statistics else ():
        module.train()

    def teach(images: Tensor) -> Tensor:
        with torch.no_grad():
            return teacher.predict_logits(images)

    return teach
