"""What follows from how often each class occurs: margins, weights, temperatures, priors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from longtail.utils.errors import InputError


def ldam_margins(class_counts: Sequence[int], max_margin: float = 0.5) -> Tensor:
    """Margin of each class, ``max_margin`` for the rarest and falling as n^(-1/4): (C,).

    LDAM (Cao et al., 2019), section 3.1.
    """
    margins = torch.as_tensor(class_counts, dtype=torch.float64) ** -0.25
    return (margins * (max_margin / margins.max())).float()


def effective_number_weights(class_counts: Sequence[int], beta: float = 0.9999) -> Tensor:
    """Class weights ``(1 - beta) / (1 - beta^n)``, scaled to mean 1: (C,).

    Class-balanced loss (Cui et al., 2019), section 3.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    weights = (1 - beta) / (1 - beta**counts)
    return (weights / weights.mean()).float()


def class_temperatures(class_counts: Sequence[int], spread: float = 0.05) -> Tensor:
    """Relative temperature of each class in the diversity loss, 1 for the most common: (C,).

    With p the classes' shares of the images, ``C * p * spread + 1 - spread`` over its maximum.
    RIDE (Wang et al., 2021), section 3.

    Raises:
        InputError: the spread is so large that a temperature is not above 0.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    temperatures = len(counts) * counts / counts.sum() * spread + 1 - spread
    if not (temperatures > 0).all():
        raise InputError(f"temperature spread {spread}: too large for these class counts, a temperature would be <= 0")
    return (temperatures / temperatures.max()).float()


def log_prior(class_counts: Sequence[int]) -> Tensor:
    """Logarithm of each class's share of the training images: (C,)."""
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    return (counts / counts.sum()).log().float()


def inverse_log_prior(class_counts: Sequence[int]) -> Tensor:
    """Log prior of a tail the other way round, in which the commonest class has the rarest one's share: (C,).

    The same shares, exchanged between the classes of rank 1 and C, 2 and C - 1 and so on; classes that are as common
    rank in their own order. SADE (Zhang et al., 2022), inverse softmax loss.
    """
    prior = log_prior(class_counts)
    order = prior.argsort(stable=True)
    return torch.empty_like(prior).index_copy_(0, order, prior[order.flip(0)])
