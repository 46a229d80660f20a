"""Trunk and branches through torch.compile."""

import torch
from torch.nn import Module

from longtail.models.multi_expert import MultiExpert


def compiled(model: MultiExpert) -> MultiExpert:
    """A twin whose trunk and branches are compiled when they first run. It shares all weights with the model.

    The model itself stays as it is, for tests, for counting, and for routing, whose batches have every size.
    """

    def one(module: Module) -> Module:
        # Once for each size of a batch, of which training has few. Otherwise, when the last batch of an epoch is
        # smaller, one program for all sizes would be made, and take the place of the faster one.
        return torch.compile(module, dynamic=False)  # type: ignore[return-value]

    branches = [one(branch) for branch in model.branches]
    return MultiExpert(one(model.trunk), branches, list(model.heads), model.neck, model.router, model.average)  # type: ignore[arg-type]
