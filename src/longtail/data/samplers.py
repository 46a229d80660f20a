"""Samplers for long-tailed data: each draw picks a class, then one of its images.

The samplings of Decoupling (Kang et al., 2020, section 3) differ in the probability of each class.
"""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from longtail.runtime.seed import generator as seeded_generator
from longtail.utils.choices import Sampling
from longtail.utils.errors import check_choice

POWERS = {"instance": 1.0, "square-root": 0.5, "class-balanced": 0.0}
"""Class probabilities are proportional to the class counts to this power"""


def class_probabilities(class_counts: Sequence[int] | Tensor, power: float) -> Tensor:
    """Returns class probabilities (C,), float64, proportional to ``class_counts ** power``.

    Power 1 is instance-balanced: all images are equally likely. 1/2 is square-root sampling, and 0 is class-balanced.
    Classes without images have probability 0.
    """
    counts = torch.as_tensor(class_counts, dtype=torch.float64)
    weights = torch.where(counts > 0, counts**power, 0)  # because 0 ** 0 is 1
    return weights / weights.sum()


def draw_positions(labels: Tensor, probabilities: Tensor, num_samples: int, generator: torch.Generator) -> Tensor:
    """Draws images: a class by its probability, then the images of that class in turn.

    The images of a class come in random order, and in a new order each time all have been drawn. So the numbers of
    draws of two images of a class differ by at most one.

    Args:
        labels: (N,).
        probabilities: of the classes, (C,); they need not sum to 1. 0 for classes without images.
        num_samples: M.
        generator: on the CPU.

    Returns:
        Positions (M,), int64, on the CPU.
    """
    labels, probabilities = labels.cpu(), probabilities.cpu().double()
    present = probabilities.nonzero().squeeze(1)
    weights = probabilities[present]
    # Equal probabilities are drawn as integers: exactly equal, and several times as fast.
    if (weights == weights[0]).all():
        classes = present[torch.randint(len(present), (num_samples,), generator=generator)]
    else:
        classes = present[torch.multinomial(weights, num_samples, replacement=True, generator=generator)]

    positions = torch.empty(num_samples, dtype=torch.int64)
    num_classes = len(probabilities)
    for images, draws in zip(_split_by_class(labels, num_classes), _split_by_class(classes, num_classes), strict=True):
        if len(draws):
            rounds = -(-len(draws) // len(images))
            orders = [images[torch.randperm(len(images), generator=generator)] for _ in range(rounds)]
            positions[draws] = torch.cat(orders)[: len(draws)]
    return positions


class LongTailSampler(Sampler[int]):
    """A sampler that any `torch.utils.data.DataLoader` takes.

    Each iteration is an epoch with draws of its own, which depend on the seed and the number of the epoch alone.

    Args:
        labels: (N,), from 0.
        sampling: how likely each class is. instance, square-root and class-balanced: see `class_probabilities`.
            progressive: from instance-balanced in the first epoch to class-balanced in the last one.
        num_samples: draws in an epoch; by default N.
        epochs: length of the training, for progressive sampling.
        seed: of the draws.

    Raises:
        InputError: there is no such sampling.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> labels = [0] * 90 + [1] * 10
        >>> sampler = LongTailSampler(labels, "class-balanced", num_samples=1000)
        >>> batch = next(iter(DataLoader(labels, batch_size=1000, sampler=sampler)))
        >>> 400 < int(batch.sum()) < 600
        True
    """

    def __init__(
        self,
        labels: Sequence[int] | NDArray[Any] | Tensor,
        sampling: Sampling = "class-balanced",
        *,
        num_samples: int | None = None,
        epochs: int = 1,
        seed: int = 0,
    ) -> None:
        check_choice("sampling", sampling, get_args(Sampling))
        self._labels = torch.as_tensor(labels).cpu()
        self._class_counts = self._labels.bincount()
        self._sampling, self._epochs, self._seed = sampling, epochs, seed
        self._num_samples = len(self._labels) if num_samples is None else num_samples
        self._epoch = 1

    def set_epoch(self, epoch: int) -> None:
        """Sets the number of the next epoch, from 1: to resume, for example. It increases with each iteration."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_samples

    def __iter__(self) -> Iterator[int]:
        positions = self.positions(self._epoch)
        self._epoch += 1
        return iter(positions.tolist())

    def probabilities(self, epoch: int) -> Tensor:
        """Returns the class probabilities of an epoch: (C,), float64."""
        if self._sampling != "progressive":
            return class_probabilities(self._class_counts, POWERS[self._sampling])
        progress = min(1.0, max(0, epoch - 1) / max(1, self._epochs - 1))
        instance, balanced = (class_probabilities(self._class_counts, power) for power in (1, 0))
        return (1 - progress) * instance + progress * balanced

    def positions(self, epoch: int, generator: torch.Generator | None = None) -> Tensor:
        """Returns the draws of an epoch: positions (num_samples,), int64, on the CPU.

        Args:
            epoch: from 1.
            generator: on the CPU; by default a new one that depends on seed and epoch.
        """
        generator = generator or seeded_generator(self._seed, epoch)
        return draw_positions(self._labels, self.probabilities(epoch), self._num_samples, generator)


def _split_by_class(labels: Tensor, num_classes: int) -> tuple[Tensor, ...]:
    """Returns the positions of each class, in order."""
    sizes = labels.bincount(minlength=num_classes).tolist()
    return torch.split(labels.argsort(stable=True), sizes)
