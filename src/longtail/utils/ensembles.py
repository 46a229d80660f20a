"""What experts say together: the arithmetic that models, losses and metrics share.

Experts are averaged by their logits, as RIDE does, or by their probabilities. An ensemble of probabilities is given as
their logarithms, which are logits like any others: softmax, argmax and calibration take them as they are.
"""

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Average = Literal["logits", "probabilities"]
AVERAGES: tuple[Average, ...] = get_args(Average)


class Summing(NamedTuple):
    """An average over experts that are heard one after the other; they go on adding to the same sum."""

    term: Callable[[Tensor], Tensor]
    """An expert's logits (..., C) -> what is added up (..., C)"""
    add: Callable[[Tensor, Tensor], Tensor]
    """Two sums or terms -> their sum"""
    mean: Callable[[Tensor, int], Tensor]
    """A sum over so many experts -> the ensemble's logits (..., C)"""


SUMMING: dict[Average, Summing] = {
    "logits": Summing(lambda logits: logits, torch.add, lambda total, number: total / number),
    # Logarithms of probabilities: a sum of probabilities themselves would lose those of unlikely classes.
    "probabilities": Summing(
        lambda logits: logits.log_softmax(dim=-1), torch.logaddexp, lambda total, number: total - math.log(number)
    ),
}


def ensemble(expert_logits: Tensor, average: Average = "logits") -> Tensor:
    """Logits of the ensemble of all experts: (B, E, C) -> (B, C)."""
    if average == "logits":
        return expert_logits.mean(dim=1)
    return expert_logits.log_softmax(dim=2).logsumexp(dim=1) - math.log(expert_logits.shape[1])


def partial_ensembles(expert_logits: Tensor, average: Average = "logits") -> Tensor:
    """Ensembles of the first expert, of the first two, ..., of all: (B, E, C) -> (B, E, C)."""
    term, add, mean = SUMMING[average]
    # Added one by one, as routing does it: a cumulative sum may round otherwise.
    sums = accumulate(map(term, expert_logits.unbind(dim=1)), add)
    return torch.stack([mean(total, number) for number, total in enumerate(sums, start=1)], dim=1)


def weighted_ensemble(expert_logits: Tensor, weights: Tensor, average: Average = "logits") -> Tensor:
    """Logits of an ensemble in which experts count by their weights: (B, E, C) and (E,) -> (B, C).

    Args:
        expert_logits: (B, E, C).
        weights: (E,), which sum to 1; with equal ones it is `ensemble`.
        average: what is weighted.
    """
    if average == "logits":
        return torch.einsum("bec,e->bc", expert_logits, weights)
    return (expert_logits.log_softmax(dim=2) + weights.log()[:, None]).logsumexp(dim=1)
