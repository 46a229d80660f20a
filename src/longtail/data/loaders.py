"""Batches of images: what every loader yields, the order of an epoch, and the loader of decoded images in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from longtail.data.batch_augment import BatchAugmentation, DrawnAugmentation
from longtail.data.samplers import LongTailSampler
from longtail.data.splits import ImageSplit
from longtail.runtime.seed import generator
from longtail.runtime.shard import SINGLE_SHARD, BatchSlice, Shard, images_per_epoch


class Batch(NamedTuple):
    """A batch of N images, of which this process holds B; all tensors are on the device."""

    inputs: Any
    """Images (B, 3, H, W), normalised, or several views of each; or, for these images, the output (B, ...) of the
    frozen part of the network or the `ExpertOutput` of frozen experts"""

    labels: Tensor
    """(N,), of the full batch"""

    rows: slice | None = None
    """Which of the N labels belong to the inputs; None: all of them"""

    soft_targets: Tensor | None = None
    """(B, C), from mixup, cutmix or label smoothing; None: the labels are the targets"""

    teacher_logits: Tensor | None = None
    """(B, C), if they were computed before"""

    num_views: int = 1
    """V, views of each image: the inputs are (V * B, ...), with all images of one view after those of another"""

    @property
    def own_labels(self) -> Tensor:
        """The labels of the images of this process: (B,)."""
        return self.labels if self.rows is None else self.labels[self.rows]

    def divide(self, parts: int) -> list["Batch"]:
        """Divides a batch of images into parts of about equal size, with the labels of the full batch."""
        if parts == 1:
            return [self]
        start = 0 if self.rows is None else self.rows.start
        views = [view.tensor_split(parts) for view in self.inputs.chunk(self.num_views)]
        soft_targets, teacher_logits = (
            [None] * parts if part is None else part.tensor_split(parts)
            for part in (self.soft_targets, self.teacher_logits)
        )
        divided = []
        for of_views, soft, teacher in zip(zip(*views, strict=True), soft_targets, teacher_logits, strict=True):
            rows = slice(start, start + len(of_views[0]))
            inputs = of_views[0] if self.num_views == 1 else torch.cat(of_views)
            divided.append(Batch(inputs, self.labels, rows, soft, teacher, self.num_views))
            start = rows.stop
        return divided


class Loader(Protocol):
    """Batches of labelled images. If several processes work together, the share of this process."""

    num_images: int
    """Images in an epoch, of all processes together"""

    batch_size: int
    """N, images in a batch, of all processes together; the last batch may be smaller"""

    shard: Shard

    def __len__(self) -> int:
        """Batches of this process in an epoch."""

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from number ``first`` on. They depend on the seed and the epoch alone."""


class ImagesLoader(Loader, Protocol):
    """A loader that knows the labels of an epoch without its images."""

    def labels(self, epoch: int) -> Tensor:
        """The labels of an epoch's images in their order, (num_images,), on the CPU. Decodes no image."""


class EpochImages(NamedTuple):
    """The images of an epoch, in order."""

    positions: Tensor
    """(M,), positions in the split"""

    augment_ids: Tensor
    """(M,), which of the epoch's random augmentations each image gets"""


@dataclass(frozen=True)
class EpochOrder:
    """Which images an epoch consists of, in which order, and their division into batches and among processes."""

    num_available: int
    """Images in the split"""

    batch_size: int
    """Images in a batch, of all processes together"""

    seed: int = 0
    shuffle: bool = False
    """A new order in each epoch; otherwise the order of the split"""

    sampler: LongTailSampler | None = None
    """Draws the images of each epoch instead, as many as there are"""

    shard: Shard = SINGLE_SHARD

    @property
    def num_images(self) -> int:
        """Images in an epoch, of all processes together."""
        sharing = 1 if self.shard.full_batches else self.shard.size
        # Batch norm in training needs two images in each process.
        return images_per_epoch(self.num_available, self.batch_size, 2 * sharing if self.shuffle else 1)

    def __len__(self) -> int:
        """Batches of this process in an epoch."""
        return len(self.batches())

    def batches(self, first: int = 0) -> list[BatchSlice]:
        """The batches of this process, from number ``first`` on."""
        return self.shard.batches(self.num_images, self.batch_size, first)

    def draw(self, epoch: int, random: torch.Generator | None = None) -> EpochImages:
        """The images of an epoch (from 1; 0 for evaluation).

        An augmentation belongs to an image, whatever the order is. If images can occur several times in an epoch it
        belongs to the place in the epoch, so that each occurrence looks different.

        Args:
            epoch: number of the epoch.
            random: generator to draw from; by default a new one that depends on seed and epoch.
        """
        random = random or generator(self.seed, epoch)
        if self.sampler is not None:
            images = EpochImages(self.sampler.positions(epoch, random), torch.arange(self.num_available))
        else:
            every = self.num_available
            positions = torch.randperm(every, generator=random) if self.shuffle else torch.arange(every)
            images = EpochImages(positions, positions)
        return EpochImages(*(part[: self.num_images] for part in images))


class Normalise:
    """Pixels from 0 to 255 to network inputs: minus the mean, divided by the standard deviation of each channel.

    Args:
        mean: of red, green and blue, from 0 to 1.
        std: of red, green and blue, from 0 to 1.
        device: where the images are.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device):
        self.mean, self.std = (255 * torch.tensor(part, device=device).view(1, 3, 1, 1) for part in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) of any type -> float32, in channels-last memory, where convolutions are fastest."""
        return self.in_place(images.to(torch.float32, memory_format=torch.channels_last))

    def in_place(self, images: Tensor) -> Tensor:
        """Normalises float32 images (B, 3, H, W) in place."""
        return images.sub_(self.mean).div_(self.std)

    def inverse(self, inputs: Tensor) -> Tensor:
        """Returns the pixels of network inputs (B, 3, H, W), uint8."""
        return (inputs * self.std + self.mean).round().to(torch.uint8)


CPU_CHUNK, GPU_CHUNK = 2**20, 2**22
"""Pixels that are augmented at once, but at least those of a batch. On a CPU they stay in its caches. On a GPU the time
is that of starting operations, whose number does not depend on the number of images"""


class MemoryLoader:
    """A `Loader` of decoded images. Within an epoch nothing is copied to the device and nothing random is drawn.

    Args:
        split: images with pixels.
        order: of the images in each epoch.
        device: where the images are kept.
        normalise: pixels to network inputs.
        augmentation: random changes; none by default.
        other_views: further views of each image in a batch, with other random changes.
    """

    def __init__(
        self,
        split: ImageSplit,
        order: EpochOrder,
        *,
        device: torch.device,
        normalise: Normalise,
        augmentation: BatchAugmentation | None = None,
        other_views: Sequence[BatchAugmentation] = (),
    ):
        assert split.pixels is not None
        self._images = torch.from_numpy(split.pixels).to(device)
        self._labels = torch.from_numpy(split.labels).to(device)
        self._order, self._device = order, device
        self._normalise = normalise
        assert augmentation is not None or not other_views
        self._views = [] if augmentation is None else [augmentation, *other_views]
        self.num_images, self.batch_size, self.shard = order.num_images, order.batch_size, order.shard

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields batches of images (V * B, 3, H, W) in channels-last memory."""
        random = generator(self._order.seed, epoch)
        positions, augment_ids = self._order.draw(epoch, random)
        height, width = self._images.shape[1:3]
        views = [DrawnAugmentation(view, len(self._labels), (height, width), random) for view in self._views]
        labels, batches = self._labels[positions.to(self._device)], self._order.batches(first)
        if not batches:
            return
        # The images of this process, one after the other.
        epoch_rows = torch.cat([torch.arange(batch.epoch_rows.start, batch.epoch_rows.stop) for batch in batches])
        chunks = self._chunks(batches)
        for view in views:
            view.prepare(augment_ids[epoch_rows], self._device, [chunk for chunk, _ in chunks])
        positions = positions[epoch_rows].to(self._device)
        for chunk, members in chunks:
            of_chunk = positions[chunk]
            augmented = [view(self._images, of_chunk, chunk) for view in views] or [self._images[of_chunk]]
            sizes = [batch.rows.stop - batch.rows.start for batch in members]
            for batch, *parts in zip(members, *(torch.split(images, sizes) for images in augmented), strict=True):
                images = parts[0] if len(parts) == 1 else torch.cat(parts)
                inputs = self._normalise(images.permute(0, 3, 1, 2))
                yield Batch(inputs, labels[batch.batch], rows_of(batch), num_views=len(parts))

    def labels(self, epoch: int) -> Tensor:
        """The labels of an epoch's images in their order: (num_images,), on the CPU."""
        return self._labels.cpu()[self._order.draw(epoch).positions]

    def _chunks(self, batches: list[BatchSlice]) -> list[tuple[slice, list[BatchSlice]]]:
        """Groups batches that are augmented at once, with their slice of this process's images."""
        pixels = CPU_CHUNK if self._device.type == "cpu" else GPU_CHUNK
        size = max(1, pixels // (self.batch_size * self._images[0, :, :, 0].numel()))
        chunks, start = [], 0
        for number in range(0, len(batches), size):
            members = batches[number : number + size]
            stop = start + sum(batch.rows.stop - batch.rows.start for batch in members)
            chunks.append((slice(start, stop), members))
            start = stop
        return chunks


def rows_of(batch: BatchSlice) -> slice | None:
    """The rows of this process in a batch; None for all of them."""
    return None if batch.epoch_rows == batch.batch else batch.rows
