"""Routing on stored outputs: the slow version of `MultiExpert.route`, which runs every expert on every image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from longtail.models.router import THRESHOLD, RoutedOutput, experts_used
from longtail.utils.choices import Average
from longtail.utils.ensembles import partial_ensembles


def route_outputs(
    logits: Tensor,
    router_logits: Tensor,
    threshold: float | Sequence[float] = THRESHOLD,
    average: Average = "logits",
) -> RoutedOutput:
    """Routes images by the logits of all experts (B, E, C) and of all steps of the router (B, E - 1)."""
    used = experts_used(router_logits, threshold)
    ensembles = partial_ensembles(logits, average)
    return RoutedOutput(ensembles[torch.arange(len(logits), device=logits.device), used - 1], used)
