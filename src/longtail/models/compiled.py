"""Trunk and branches through torch.compile."""

import torch

from longtail.models.experts import MultiExpert


def compiled(model: MultiExpert) -> MultiExpert:
    """A twin whose trunk and branches are compiled when they first run. It shares all weights with the model.

    The model itself stays as it is, for tests, for counting, and for routing, whose batches have every size.
    """
    branches = [torch.compile(branch) for branch in model.branches]
    return MultiExpert(torch.compile(model.trunk), branches, list(model.heads), model.neck, model.router)  # type: ignore[arg-type]
