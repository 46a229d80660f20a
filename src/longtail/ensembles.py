"""What experts say together: the arithmetic that models, losses and metrics share."""

from itertools import accumulate

import torch
from torch import Tensor


def partial_ensembles(expert_logits: Tensor) -> Tensor:
    """Mean logits of the first expert, of the first two, ..., of all: (B, E, C) -> (B, E, C)."""
    # Added one by one, as routing does it: a cumulative sum may round otherwise.
    sums = accumulate(expert_logits.unbind(dim=1))
    return torch.stack([total / number for number, total in enumerate(sums, start=1)], dim=1)
