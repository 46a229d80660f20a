"""Averages over experts, which models, losses and metrics share.

An ensemble averages logits, as RIDE does, or probabilities. The logarithm of averaged probabilities serves as the
ensemble's logits: softmax, argmax and calibration apply to it as to any logits. Letters in shapes: B images, E experts,
C classes.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.utils.choices import Average


class RunningAverage(NamedTuple):
    """An average over experts that run one after the other, computed from a running sum."""

    term: Callable[[Tensor], Tensor]
    """Logits of an expert (..., C) -> term of the sum (..., C)"""

    add: Callable[[Tensor, Tensor], Tensor]
    """Two sums or terms -> their sum"""

    mean: Callable[[Tensor, int], Tensor]
    """A sum, and its number of experts -> logits of the ensemble (..., C)"""


RUNNING_AVERAGES: dict[Average, RunningAverage] = {
    "logits": RunningAverage(lambda logits: logits, torch.add, lambda total, number: total / number),
    # Sums of logarithms: small probabilities would be lost in a sum of probabilities.
    "probabilities": RunningAverage(
        lambda logits: logits.log_softmax(dim=-1), torch.logaddexp, lambda total, number: total - math.log(number)
    ),
}


def ensemble(expert_logits: Tensor, average: Average = "logits", dim: int = 1) -> Tensor:
    """Returns the logits of the ensemble of all experts: (B, E, C) -> (B, C). ``dim`` is the dimension to average."""
    if average == "logits":
        return expert_logits.mean(dim=dim)
    return expert_logits.log_softmax(dim=-1).logsumexp(dim=dim) - math.log(expert_logits.shape[dim])


def average_views(outputs: Tensor, num_views: int, average: Average = "logits") -> Tensor:
    """Returns the average over V views of each image: (V * B, ..., C) -> (B, ..., C).

    Args:
        outputs: logits, all images of one view after those of another.
        num_views: V.
        average: what is averaged; "logits" also averages any other numbers.
    """
    return outputs if num_views == 1 else ensemble(torch.stack(outputs.chunk(num_views)), average, dim=0)


def partial_ensembles(expert_logits: Tensor, average: Average = "logits") -> Tensor:
    """Returns the logits of the ensembles of the first expert, the first two, ..., all: (B, E, C) -> (B, E, C)."""
    term, add, mean = RUNNING_AVERAGES[average]
    # Added one by one, with the same rounding as in routing; a cumulative sum can round differently.
    sums = accumulate(map(term, expert_logits.unbind(dim=1)), add)
    return torch.stack([mean(total, number) for number, total in enumerate(sums, start=1)], dim=1)


def weighted_ensemble(expert_logits: Tensor, weights: Tensor, average: Average = "logits") -> Tensor:
    """Returns the logits of a weighted ensemble: (B, E, C) and (E,) -> (B, C).

    Args:
        expert_logits: (B, E, C).
        weights: (E,), which sum to 1. Equal weights give the same result as `ensemble`.
        average: what is averaged.
    """
    if average == "logits":
        return torch.einsum("bec,e->bc", expert_logits, weights)
    return (expert_logits.log_softmax(dim=2) + weights.log()[:, None]).logsumexp(dim=1)
