"""What experts say together: the arithmetic that models, losses and metrics share."""

from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor


def partial_ensembles(expert_logits: Tensor) -> Tensor:
    """Mean logits of the first expert, of the first two, ..., of all: (B, E, C) -> (B, E, C)."""
    # Added one by one, as routing does it: a cumulative sum may round otherwise.
    sums = accumulate(expert_logits.unbind(dim=1))
    return torch.stack([total / number for number, total in enumerate(sums, start=1)], dim=1)


def weighted_ensemble(
    expert_logits: Tensor, weights: Tensor, of: Literal["logits", "probabilities"] = "logits"
) -> Tensor:
    """Logits of an ensemble in which experts count by their weights: (B, E, C) and (E,) -> (B, C).

    Args:
        expert_logits: (B, E, C).
        weights: (E,), which sum to 1; equal ones make `ExpertOutput.ensemble` of logits.
        of: the mean of the experts' logits, or the logarithm of the mean of their probabilities.
    """
    if of == "logits":
        return torch.einsum("bec,e->bc", expert_logits, weights)
    return (expert_logits.log_softmax(dim=2) + weights.log()[:, None]).logsumexp(dim=1)
