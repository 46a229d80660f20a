"""Batches of small images that lie decoded on the device."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from longtail.data.batch_augment import apply_augment, draw_augment_params
from longtail.data.samplers import Sampler
from longtail.data.splits import Split
from longtail.runtime.seed import generator
from longtail.runtime.shard import ALL, Shard, images_per_epoch

Batch = tuple[Tensor, ...]
"""Images (B, 3, H, W), normalised, labels (B,), and where there are any, soft targets (B, C); all on the device"""


class Loader(Protocol):
    """Batches of labelled images; where several processes work together, this one's share of them."""

    num_images: int
    """In an epoch, of all processes together"""

    batch_size: int
    """Of all processes together; the last batch may be shorter"""

    shard: Shard

    def __len__(self) -> int:
        """Batches of this process in an epoch."""

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch; the same for the same number, and for whatever came before ``first``."""

    def labels(self, epoch: int) -> Tensor:
        """The labels of an epoch's images, in their order, (num_images,), on the CPU; no image is touched."""


class Normalise:
    """Pixels from 0 to 255 to what networks take: less the mean, divided by the standard deviation of each channel.

    Args:
        mean: of red, green and blue, from 0 to 1.
        std: likewise.
        device: where the images are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device):
        self.mean, self.std = (255 * torch.tensor(part, device=device).view(1, 3, 1, 1) for part in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) of any type -> float32, in channels-last memory, where convolutions are fastest."""
        return self.in_place(images.to(torch.float32, memory_format=torch.channels_last))

    def in_place(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32, which are changed themselves."""
        return images.sub_(self.mean).div_(self.std)


def least_images(shuffle: bool, shard: Shard) -> int:
    """What a batch must have: for training two images for each process that shares it, because batch norm needs two."""
    sharing = 1 if shard.whole_batches else shard.size
    return 2 * sharing if shuffle else 1


class EpochOrder(NamedTuple):
    """Which images an epoch is made of, in which order, and by which of the epoch's random changes."""

    positions: Tensor
    """(M,), in the split"""

    changes: Tensor
    """(M,), numbers below that of the split's images"""


def epoch_order(every: int, epoch: int, draw: torch.Generator, shuffle: bool, sampler: Sampler | None) -> EpochOrder:
    """The images of an epoch, from a generator that depends on the seed and the epoch alone.

    Changes go by the image, so that they are its own whatever the order; where an image may come up several times in an
    epoch they go by its place, so that each time it looks different.

    Args:
        every: images in the split.
        epoch: from 1; 0 for tests.
        draw: is drawn from.
        shuffle: in a new order; otherwise in their own.
        sampler: draws them instead.
    """
    if sampler is not None:
        return EpochOrder(sampler(epoch, draw), torch.arange(every))
    positions = torch.randperm(every, generator=draw) if shuffle else torch.arange(every)
    return EpochOrder(positions, positions)


class MemoryLoader:
    """A `Loader` over decoded pixels. No copy to the device and no random draw happens inside an epoch.

    Args:
        split: with pixels.
        batch_size: B, of all processes together; the last batch may be shorter, but see `least_images`.
        device: where the images lie from now on.
        normalise: pixels to the network's input.
        seed: of order and augmentation.
        shuffle: draw a new order for each epoch.
        sampler: draws the images of each epoch, as many as there are, instead of their all being in it once.
        padding: of the random crop, in pixels.
        flip: mirror half of the images.
        rotation: largest angle, degrees.
        share: of this process.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        *,
        device: torch.device,
        normalise: Normalise,
        seed: int = 0,
        shuffle: bool = False,
        sampler: Sampler | None = None,
        padding: int = 0,
        flip: bool = False,
        rotation: float = 0.0,
        shard: Shard = ALL,
    ):
        assert split.pixels is not None
        self._images = torch.from_numpy(split.pixels).to(device)
        self._labels = torch.from_numpy(split.labels).to(device)
        self.num_images = images_per_epoch(len(split), batch_size, least_images(shuffle, shard))
        self.batch_size = batch_size
        self.shard = shard
        self.device = device
        self.normalise = normalise
        self.seed = seed
        self.shuffle, self.sampler = shuffle, sampler
        self.padding, self.flip, self.rotation = padding, flip, rotation
        self.augments = padding > 0 or flip or rotation > 0

    def __len__(self) -> int:
        return len(self.shard.batches(self.num_images, self.batch_size))

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Images (B, 3, H, W), in channels-last memory, and labels (B,)."""
        draw = generator(self.seed, epoch)
        positions, changes = self._drawn(epoch, draw)
        params = draw_augment_params(len(self._labels), self.padding, self.flip, self.rotation, draw)
        params = type(params)(*(part.to(self.device) for part in params))
        order, changes = positions.to(self.device), changes.to(self.device)
        for part in self.shard.batches(self.num_images, self.batch_size, first):
            positions = order[part]
            if self.augments:
                images = apply_augment(self._images, positions, params.take(changes[part]), self.padding)
            else:
                images = self._images[positions]
            yield self.normalise(images.permute(0, 3, 1, 2)), self._labels[positions]

    def labels(self, epoch: int) -> Tensor:
        """Those of an epoch, in its order: (num_images,), on the CPU."""
        return self._labels.cpu()[self._drawn(epoch, generator(self.seed, epoch)).positions]

    def _drawn(self, epoch: int, draw: torch.Generator) -> EpochOrder:
        whole = epoch_order(len(self._labels), epoch, draw, self.shuffle, self.sampler)
        return EpochOrder(*(part[: self.num_images] for part in whole))
