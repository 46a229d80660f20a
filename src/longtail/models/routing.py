"""The rule that routed answers follow: when to stop, and what is answered then."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.ensembles import Average, partial_ensembles
from longtail.errors import InputError

THRESHOLD = 0.5
"""The original's"""


class RoutedOutput(NamedTuple):
    """What the experts that were asked say about a batch of B images: E experts, C classes."""

    logits: Tensor
    """(B, C), of the ensemble of the experts asked"""

    experts_used: Tensor
    """(B,), int64, from 1 to E"""


def route_outputs(
    logits: Tensor,
    router_logits: Tensor,
    threshold: float | Sequence[float] = THRESHOLD,
    average: Average = "logits",
) -> RoutedOutput:
    """The routed answers, from what all experts and the router say: for trying many thresholds without the network.

    Args:
        logits: every expert's (B, E, C).
        router_logits: of every step (B, E - 1), as `Router` yields them.
        threshold: see `MultiExpert.route`.
        average: what of the experts makes the answers.

    Raises:
        InputError: the number of thresholds is wrong.
    """
    used = experts_used(router_logits, threshold)
    answers = partial_ensembles(logits, average)[torch.arange(len(logits), device=logits.device), used - 1]
    return RoutedOutput(answers, used)


def experts_used(router_logits: Tensor, threshold: float | Sequence[float] = THRESHOLD) -> Tensor:
    """How many experts each image is shown to: (B, E - 1) -> (B,), int64, from 1 to E.

    Raises:
        InputError: the number of thresholds is wrong.
    """
    limits = thresholds(threshold, router_logits.shape[1])
    going = [goes_on(router_logits[:, i], limit) for i, limit in enumerate(limits)]
    # Whoever stops once does not go on later, whatever the router says then.
    return 1 + torch.stack(going, dim=1).long().cumprod(dim=1).sum(dim=1)


def goes_on(router_logits: Tensor, threshold: float) -> Tensor:
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
