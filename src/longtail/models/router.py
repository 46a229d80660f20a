"""The expert-assignment head: after each expert, whether an image needs one more."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.runtime.precision import full_precision
from longtail.utils.ensembles import partial_ensembles
from longtail.utils.errors import InputError

THRESHOLD = 0.5
"""The original's"""

TOP_CHOICES, HIDDEN = 30, 16
"""The original's for CIFAR; for a thousand classes and more it looks at 50 choices."""


class Router(nn.Module):
    """At step i, with experts 0 to i heard, one logit per image: above 0, the next expert is worth asking.

    It sees the largest of the mean logits so far, and the last expert's feature through a small layer of the step's
    own. RIDE (Wang et al., 2021), section 3, "routing diversified experts".

    Args:
        num_experts: experts E; there are E - 1 steps.
        num_features: D of an expert.
        num_classes: C.
        top_choices: how many of the largest mean logits it sees, the largest first; at most C are taken.
        hidden: numbers that a step makes of the feature.
        shared: one last layer for all steps, or one for each.
        threshold: above which probability an image goes on, unless told otherwise.
        kaiming: Kaiming-normal weights, as the original's CIFAR networks have them; by default torch's own.

    Raises:
        InputError: an argument is out of range.
    """

    def __init__(
        self,
        num_experts: int,
        num_features: int,
        num_classes: int,
        *,
        top_choices: int = TOP_CHOICES,
        hidden: int = HIDDEN,
        shared: bool = True,
        threshold: float = THRESHOLD,
        kaiming: bool = False,
    ):
        super().__init__()
        if num_experts < 2:
            raise InputError(f"num_experts is {num_experts}; a router chooses among at least 2 experts")
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
        """Whether to go on after expert ``step`` (from 0), as a logit: (B,).

        Args:
            step: how many experts were heard before this one.
            features: this expert's (B, D).
            mean_logits: mean of the logits of the experts heard, this one included, (B, C).
        """
        with full_precision(features):
            hidden = F.relu(self.hidden[step](F.normalize(features)))
            choices = mean_logits.topk(self.top_choices).values
            output = self.output[step if len(self.output) > 1 else 0]
            logit: Tensor = output(torch.cat([choices, hidden], dim=1))
        return logit.squeeze(1)

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """All steps at once, from what all experts say: (B, E, C) and (B, E, D) -> (B, E - 1)."""
        means = partial_ensembles(logits)
        steps = range(len(self.hidden))
        return torch.stack([self.step(i, features[:, i], means[:, i]) for i in steps], dim=1)


class RoutedOutput(NamedTuple):
    """What the experts that were asked say about a batch of B images: E experts, C classes."""

    logits: Tensor
    """(B, C), of the ensemble of the experts asked"""

    experts_used: Tensor
    """(B,), int64, from 1 to E"""


def experts_used(router_logits: Tensor, threshold: float | Sequence[float] = THRESHOLD) -> Tensor:
    """How many experts each image is shown to: (B, E - 1) -> (B,), int64, from 1 to E.

    Raises:
        InputError: the number of thresholds is wrong.
    """
    limits = thresholds(threshold, router_logits.shape[1])
    going = [should_continue(router_logits[:, i], limit) for i, limit in enumerate(limits)]
    # Whoever stops once does not go on later, whatever the router says then.
    return 1 + torch.stack(going, dim=1).long().cumprod(dim=1).sum(dim=1)


def should_continue(router_logits: Tensor, threshold: float) -> Tensor:
    """Which images are to see the next expert: (B,) -> bool (B,)."""
    return router_logits.sigmoid() > threshold


def thresholds(given: float | Sequence[float], num_steps: int) -> list[float]:
    """One threshold for each step.

    Raises:
        InputError: there are several, but not as many as steps.
    """
    if not isinstance(given, Sequence):
        return [given] * num_steps
    if len(given) != num_steps:
        raise InputError(f"{len(given)} thresholds {list(given)}: one for all steps, or one for each of {num_steps}")
    return list(given)
