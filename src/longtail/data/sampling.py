"""Which images an epoch is made of, where it is not simply all of them."""

import torch
from torch import Tensor


def class_balanced(labels: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """Positions of draws in which every class is as likely as any other.

    For each draw a class, then that class's images in turn, in a random order that is drawn again when all have had
    theirs: RIDE's sampler; class-balanced sampling of Decoupling (Kang et al., 2020), section 3.

    Args:
        labels: (N,).
        num_draws: M.
        generator: on the CPU.

    Returns:
        (M,), int64, on the CPU.
    """
    labels = labels.cpu()
    present = torch.unique(labels)
    drawn = present[torch.randint(len(present), (num_draws,), generator=generator)]
    positions = torch.empty(num_draws, dtype=torch.int64)
    for label in present:
        own = (labels == label).nonzero().squeeze(1)
        places = (drawn == label).nonzero().squeeze(1)
        rounds = -(-len(places) // len(own))
        orders = [own[torch.randperm(len(own), generator=generator)] for _ in range(rounds)]
        if orders:
            positions[places] = torch.cat(orders)[: len(places)]
    return positions
