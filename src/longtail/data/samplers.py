"""Which images an epoch is made of, where it is not simply all of them.

A class is drawn first, then one of its images; samplers differ in how likely each class is.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from longtail.utils.errors import InputError

Sampling = Literal["instance", "square-root", "class-balanced", "progressive"]

Sampler = Callable[[int, torch.Generator], Tensor]
"""Epoch, from 1, and a generator on the CPU -> positions of the epoch's draws (M,), int64, on the CPU"""

POWERS = {"instance": 1.0, "square-root": 0.5, "class-balanced": 0.0}
"""Of the classes' numbers of images, see `class_probabilities`."""


def class_probabilities(class_counts: Sequence[int] | Tensor, power: float) -> Tensor:
    """Chance of each class, as its number of images to a power: C numbers -> (C,), float64.

    1: instance-balanced, every image is as likely; 1/2: square-root; 0: class-balanced. A class without images is
    never drawn. Decoupling (Kang et al., 2020), section 3.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    weights = torch.where(counts > 0, counts**power, 0)  # not 0 ** 0, which is 1
    return weights / weights.sum()


def progressively_balanced(class_counts: Sequence[int] | Tensor, progress: float) -> Tensor:
    """Chance of each class, from instance-balanced to class-balanced as training goes on: C numbers -> (C,), float64.

    Decoupling (Kang et al., 2020), section 3.

    Args:
        class_counts: C numbers.
        progress: t / T, from 0 at the start of training to 1 at its end.

    Raises:
        InputError: the progress is not from 0 to 1.
    """
    if not 0 <= progress <= 1:
        raise InputError(f"progress {progress}: the part of training that is over, from 0 to 1")
    instance, balanced = class_probabilities(class_counts, 1), class_probabilities(class_counts, 0)
    return (1 - progress) * instance + progress * balanced


def class_draws(labels: Tensor, probabilities: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """Positions of draws in which the classes are as likely as given.

    For each draw a class, then that class's images in turn, in a random order that is drawn again when all have had
    theirs: how often two images of a class come up differs by one at most.

    Args:
        labels: (N,).
        probabilities: of the classes (C,), such as `class_probabilities`; they need not sum to 1.
        num_draws: M.
        generator: on the CPU.

    Returns:
        (M,), int64, on the CPU.

    Raises:
        InputError: a class without images has a chance.
    """
    labels, probabilities = labels.cpu(), probabilities.cpu().double()
    counts = labels.bincount(minlength=len(probabilities))
    present = probabilities.nonzero().squeeze(1)
    if (counts[present] == 0).any() or len(counts) > len(probabilities):
        raise InputError(
            f"probabilities of {len(probabilities)} classes: there must be one for each label, and 0 without images"
        )
    chances = probabilities[present]
    # Equal chances are drawn as whole numbers, exactly equal and several times as fast.
    if (chances == chances[0]).all():
        numbers = torch.randint(len(present), (num_draws,), generator=generator)
    else:
        numbers = torch.multinomial(chances, num_draws, replacement=True, generator=generator)
    drawn = present[numbers]

    positions = torch.empty(num_draws, dtype=torch.int64)
    for own, places in zip(_by_class(labels, len(counts)), _by_class(drawn, len(counts)), strict=True):
        if len(places):
            rounds = -(-len(places) // len(own))
            orders = [own[torch.randperm(len(own), generator=generator)] for _ in range(rounds)]
            positions[places] = torch.cat(orders)[: len(places)]
    return positions


def class_balanced(labels: Tensor, num_draws: int, generator: torch.Generator) -> Tensor:
    """Positions of draws in which every class is as likely as any other: RIDE's sampler.

    Args:
        labels: (N,).
        num_draws: M.
        generator: on the CPU.

    Returns:
        (M,), int64, on the CPU.
    """
    labels = labels.cpu()
    return class_draws(labels, class_probabilities(labels.bincount(), 0), num_draws, generator)


def sampler(sampling: Sampling, labels: Tensor, epochs: int) -> Sampler:
    """Draws as many images an epoch as there are; some come up several times, others not at all.

    Args:
        sampling: instance, square-root or class-balanced, see `class_probabilities`; progressive goes from the first to
            the last of them, see `progressively_balanced`.
        labels: (N,).
        epochs: of the training: the progress is 0 in the first and 1 in the last.
    """
    labels = labels.cpu()
    counts = labels.bincount()

    def draws(epoch: int, generator: torch.Generator) -> Tensor:
        if sampling == "progressive":
            chances = progressively_balanced(counts, min(1.0, (epoch - 1) / max(1, epochs - 1)))
        else:
            chances = class_probabilities(counts, POWERS[sampling])
        return class_draws(labels, chances, len(labels), generator)

    return draws


def _by_class(labels: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """Where each class occurs, in order."""
    sizes = labels.bincount(minlength=num_classes).tolist()
    return torch.split(labels.argsort(stable=True), sizes)
