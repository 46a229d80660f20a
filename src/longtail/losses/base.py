"""The base class of all criteria, and the registry of their names."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from longtail.losses.class_counts import effective_number_weights
from longtail.losses.functional import cross_entropy, per_expert
from longtail.utils.registry import Registry


class Criterion(nn.Module):
    """Loss of several experts, with class weights once ``epoch > reweight_after`` (deferred re-weighting, DRW).

    `forward` is the recipe of every criterion. A criterion overrides one or more of its three steps: `adjust`,
    `base_loss` and `regularizer`. The constants follow the module's device and are not part of its state dict.

    Args:
        class_counts: training images of each class, C numbers.
        reweight_after: last epoch without class weights; 0: class weights in all epochs; None: in no epoch.
        reweight_beta: see `effective_number_weights`.
        collaborative: apply the loss to the mean logits of the experts instead of to each expert.
    """

    learns_probabilities: ClassVar[bool] = True
    """Whether the softmax of the adjusted logits learns class probabilities"""

    settings: ClassVar[Mapping[str, str]] = {}
    """The field of `LossConfig` for each argument that has a different name"""

    weights: Tensor

    def __init__(
        self,
        class_counts: Sequence[int],
        *,
        reweight_after: int | None = None,
        reweight_beta: float = 0.9999,
        collaborative: bool = False,
    ):
        super().__init__()
        self.reweight_after = reweight_after
        self.collaborative = collaborative
        self.register_buffer("weights", effective_number_weights(class_counts, reweight_beta), persistent=False)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        epoch: int,
        soft_targets: Tensor | None = None,
        rows: slice | None = None,
    ) -> Tensor:
        """Returns the loss, a scalar: summed over experts, averaged over images.

        Args:
            logits: (B, E, C), or (B, C) of one expert.
            labels: (N,), of the full batch.
            epoch: from 1.
            soft_targets: target probabilities (B, C); None: the labels.
            rows: which of the N labels belong to the logits, if the batch is divided among steps or processes; None:
                all of them. The mean of the losses of all parts, weighted by their sizes, is the loss of the batch.
        """
        expert_logits = per_expert(logits)
        own_labels = labels if rows is None else labels[rows]
        weight = self.weights if self.is_reweighted(epoch) else None
        used = expert_logits
        if self.collaborative:
            used = expert_logits.mean(dim=1, keepdim=True).expand_as(expert_logits)
        loss = self.base_loss(self.adjust(used, own_labels), own_labels, weight, soft_targets)
        if weight is not None and rows is not None and soft_targets is None:
            # A weighted mean divides by the mean weight of these images. Divide by that of the full batch instead.
            loss = loss * (weight[own_labels].mean() / weight[labels].mean())
        regularizer = self.regularizer(expert_logits, epoch)
        return loss if regularizer is None else loss + regularizer

    def phase(self, epoch: int) -> Hashable:
        """Returns a value that is equal for epochs in which `forward` is the same function."""
        return self.is_reweighted(epoch)

    def is_reweighted(self, epoch: int) -> bool:
        """Whether the class weights are used in this epoch."""
        return self.reweight_after is not None and epoch > self.reweight_after

    def adjust(self, expert_logits: Tensor, labels: Tensor) -> Tensor:
        """Returns the logits (B, E, C) that the base loss uses; unchanged by default."""
        return expert_logits

    def base_loss(
        self, expert_logits: Tensor, labels: Tensor, weight: Tensor | None, soft_targets: Tensor | None
    ) -> Tensor:
        """Returns the classification loss, a scalar; `cross_entropy` by default."""
        return cross_entropy(expert_logits, labels, weight, soft_targets)

    def regularizer(self, expert_logits: Tensor, epoch: int) -> Tensor | None:
        """Returns a term that is added to the loss, a mean over images; None by default."""
        return None


AnyCriterion = TypeVar("AnyCriterion", bound=type[Criterion])

REGISTRY: Registry[type[Criterion]] = Registry("loss.name", "longtail.losses")


def register(name: str, **settings: str) -> Callable[[AnyCriterion], AnyCriterion]:
    """Decorator that makes a class the criterion of ``loss.name: <name>``.

    Its arguments are read from the fields of `LossConfig` with the same names.

    Args:
        name: of the loss in the settings.
        settings: the field of `LossConfig` for each argument that has a different name, such as
            ``gamma="focal_gamma"``.
    """

    def decorate(criterion: AnyCriterion) -> AnyCriterion:
        criterion.settings = settings
        REGISTRY.added[name] = criterion
        return criterion

    return decorate
