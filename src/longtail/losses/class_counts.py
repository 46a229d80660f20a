"""Constants that follow from the class counts: margins, weights, temperatures, priors."""

from collections.abc import Sequence

import torch
from torch import Tensor

from longtail.utils.errors import InputError


def _checked(class_counts: Sequence[int]) -> Tensor:
    """Returns the counts as (C,) float64. All constants below are infinite or NaN for a class without images."""
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    if not (counts > 0).all():
        label = int((~(counts > 0)).nonzero()[0])
        raise InputError(f"class {label} has {counts[label]:g} training images; every class needs at least one")
    return counts


def ldam_margins(class_counts: Sequence[int], max_margin: float = 0.5) -> Tensor:
    """Returns the margin of each class: (C,). It is proportional to n^(-1/4), and ``max_margin`` for the rarest class.

    LDAM (Cao et al., 2019), section 3.1.
    """
    margins = _checked(class_counts) ** -0.25
    return (margins * (max_margin / margins.max())).float()


def effective_number_weights(class_counts: Sequence[int], beta: float = 0.9999) -> Tensor:
    """Returns the class weights ``(1 - beta) / (1 - beta^n)``, scaled to mean 1: (C,).

    Class-balanced loss (Cui et al., 2019), section 3.

    Example:
        >>> effective_number_weights([500, 120, 9])
        tensor([0.0506, 0.2068, 2.7426])
    """
    counts = _checked(class_counts)
    weights = (1 - beta) / (1 - beta**counts)
    return (weights / weights.mean()).float()


def class_temperatures(class_counts: Sequence[int], spread: float = 0.05) -> Tensor:
    """Returns the relative temperature of each class in the diversity loss: (C,), 1 for the most common class.

    ``C * p * spread + 1 - spread`` for the class's share p of the images, divided by the maximum over classes.
    RIDE (Wang et al., 2021), section 3.

    Raises:
        InputError: the spread is so large that a temperature would be 0 or less.
    """
    counts = _checked(class_counts)
    temperatures = len(counts) * counts / counts.sum() * spread + 1 - spread
    if not (temperatures > 0).all():
        raise InputError(f"temperature spread {spread}: too large for these class counts, a temperature would be <= 0")
    return (temperatures / temperatures.max()).float()


def log_prior(class_counts: Sequence[int]) -> Tensor:
    """Returns the logarithm of each class's share of the training images: (C,)."""
    counts = _checked(class_counts)
    return (counts / counts.sum()).log().float()


def inverse_log_prior(class_counts: Sequence[int]) -> Tensor:
    """Returns the log prior of the inverted tail, in which the most common class has the share of the rarest: (C,).

    The classes of rank 1 and C exchange their shares, as do those of rank 2 and C - 1, and so on. Equally common
    classes are ranked in their order. SADE (Zhang et al., 2022), inverse softmax loss.
    """
    prior = log_prior(class_counts)
    order = prior.argsort(stable=True)
    return torch.empty_like(prior).index_copy_(0, order, prior[order.flip(0)])
