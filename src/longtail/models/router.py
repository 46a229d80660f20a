"""The router (expert assignment). Letters in shapes: B images, E experts, C classes, D features."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.runtime.precision import full_precision
from longtail.utils.ensembles import partial_ensembles
from longtail.utils.errors import InputError

THRESHOLD = 0.5
"""Default threshold, that of the original"""


class Router(nn.Module):
    """After each expert except the last, predicts whether an image needs the next one: one logit per image and step.

    Its inputs are the largest mean logits of the experts so far, and the feature of the last of them, which passes
    through a small layer. RIDE (Wang et al., 2021), section 3, "routing diversified experts".

    Args:
        num_experts: experts E; there are E - 1 steps.
        num_features: D.
        num_classes: C.
        top_choices: number of largest mean logits that are inputs, at most C. The original uses 30 for CIFAR, 50 for
            more classes.
        hidden: outputs of the small layer.
        shared: use the same last layer for all steps.
        threshold: an image continues to the next expert if its probability is above this.
        kaiming: Kaiming-normal initial weights, as in the original's CIFAR networks; otherwise torch's default.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        num_experts: int,
        num_features: int,
        num_classes: int,
        *,
        top_choices: int = 30,
        hidden: int = 16,
        shared: bool = True,
        threshold: float = THRESHOLD,
        kaiming: bool = False,
    ):
        super().__init__()
        if num_experts < 2:
            raise InputError(f"num_experts is {num_experts}; a router needs at least 2 experts")
        if top_choices < 1 or hidden < 1:
            raise InputError(f"router: top_choices is {top_choices} and hidden {hidden}; both must be at least 1")
        self.top_choices = min(top_choices, num_classes)
        self.threshold = threshold
        steps = num_experts - 1
        self.hidden = nn.ModuleList(nn.Linear(num_features, hidden) for _ in range(steps))
        outputs = 1 if shared else steps
        self.output = nn.ModuleList(nn.Linear(self.top_choices + hidden, 1) for _ in range(outputs))
        if kaiming:
            for layer in (*self.hidden, *self.output):
                nn.init.kaiming_normal_(layer.weight)

    @property
    def options(self) -> dict[str, Any]:
        """The arguments of `create_router` for such a router, with the present threshold."""
        hidden, shared = self.hidden[0].out_features, len(self.output) == 1
        return {"top_choices": self.top_choices, "hidden": hidden, "shared": shared, "threshold": self.threshold}

    def step(self, step: int, features: Tensor, mean_logits: Tensor) -> Tensor:
        """Returns the logits (B,) for continuing after one expert.

        Args:
            step: number of this expert, from 0.
            features: of this expert, (B, D).
            mean_logits: mean logits of the experts up to this one, (B, C).
        """
        with full_precision(features):
            hidden = F.relu(self.hidden[step](F.normalize(features)))
            choices = mean_logits.topk(self.top_choices).values
            output = self.output[step if len(self.output) > 1 else 0]
            logit: Tensor = output(torch.cat([choices, hidden], dim=1))
        return logit.squeeze(1)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """Runs all steps on the outputs of all experts: (B, E, C) and (B, E, D) -> (B, E - 1)."""
        means = partial_ensembles(logits)
        steps = range(len(self.hidden))
        return torch.stack([self.step(i, features[:, i], means[:, i]) for i in steps], dim=1)


class RoutedOutput(NamedTuple):
    """Outputs of a routed model for a batch of B images. C classes."""

    logits: Tensor
    """(B, C), of the ensemble of the experts that ran"""

    experts_used: Tensor
    """(B,), int64, from 1 to E"""


def experts_used(router_logits: Tensor, threshold: float | Sequence[float] = THRESHOLD) -> Tensor:
    """Returns how many experts run on each image: (B, E - 1) -> (B,), int64, from 1 to E.

    Raises:
        InputError: the number of thresholds is wrong.
    """
    limits = step_thresholds(threshold, router_logits.shape[1])
    active = [should_continue(router_logits[:, i], limit) for i, limit in enumerate(limits)]
    # An image that stops at one expert is not shown to later ones.
    return 1 + torch.stack(active, dim=1).long().cumprod(dim=1).sum(dim=1)


def should_continue(router_logits: Tensor, threshold: float) -> Tensor:
    """Returns which images continue to the next expert: (B,) -> bool (B,)."""
    return router_logits.sigmoid() > threshold


def step_thresholds(threshold: float | Sequence[float], num_steps: int) -> list[float]:
    """Returns one threshold per step, from one for all steps or one per step.

    Raises:
        InputError: the number of thresholds is wrong.
    """
    if not isinstance(threshold, Sequence):
        return [threshold] * num_steps
    if len(threshold) != num_steps:
        raise InputError(
            f"{len(threshold)} thresholds {list(threshold)}: give one for all steps, or one for each of {num_steps}"
        )
    return list(threshold)
