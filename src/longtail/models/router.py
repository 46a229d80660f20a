"""The expert-assignment head: after each expert, whether an image needs one more."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.ensembles import partial_ensembles
from longtail.errors import InputError
from longtail.models.full_precision import full_precision
from longtail.models.routing import THRESHOLD

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
