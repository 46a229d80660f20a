"""Batches from picture files, decoded in worker processes, the same whatever their number."""

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from longtail.data import color_jitter
from longtail.data.fast_crop import FileCrop
from longtail.data.image_io import decode
from longtail.data.loaders import EpochOrder, Normalise, epoch_order, least_images
from longtail.data.samplers import Sampler as DrawImages
from longtail.data.splits import Split
from longtail.data.transforms import Transform
from longtail.runtime.process import STOPPING
from longtail.runtime.seed import generator, seeded
from longtail.runtime.shard import ALL, Shard, images_per_epoch
from longtail.utils.errors import InputError

Key = tuple[int, int, int]
"""(epoch, position in the split, number of the random change)"""
Sample = tuple[Tensor, Tensor, int] | InputError
"""Pixels, changes of colours that are left to the device, label"""
Batch = tuple[Tensor, Tensor, Tensor]


def refuse(error: InputError) -> None:
    """A picture that does not decode ends the epoch."""
    raise error


class FileLoader:
    """A `Loader` over picture files.

    The order depends on the seed and the epoch alone, random changes to an image on those and its position (or its
    place in the epoch, see `longtail.data.loaders.epoch_order`). So an epoch can be repeated without those before it, with
    any number of workers, and leaves torch's generators alone.

    Args:
        split: images with paths.
        transform: a picture to a uint8 tensor (3, S, S); may draw from the global generators of torch, NumPy, Python.
            A `FileCrop` is given the file instead.
        batch_size: images in a batch; the last one may be smaller.
        device: where batches are put.
        normalise: pixels to the network's input.
        seed: of order and random changes.
        shuffle: whether each epoch has another order; otherwise the split's own.
        sampler: draws the images of each epoch, as many as there are, instead of their all being in it once.
        workers: processes that decode; 0 decodes in this one. They live as long as the loader.
        share: of this process, where several train or test together.
        on_corrupt_image: is told why a picture does not decode, which is then left out of its batch.
    """

    def __init__(
        self,
        split: Split,
        transform: Transform | FileCrop,
        batch_size: int,
        *,
        device: torch.device,
        normalise: Normalise,
        seed: int = 0,
        shuffle: bool = False,
        sampler: DrawImages | None = None,
        workers: int = 0,
        shard: Shard = ALL,
        on_corrupt_image: Callable[[InputError], None] = refuse,
    ) -> None:
        if workers:
            _end_workers_at_exit()
        self.num_images = images_per_epoch(len(split), batch_size, least_images(shuffle, shard))
        self.batch_size = batch_size
        self.shard = shard
        self._device = device
        self._normalise = normalise
        self._labels = split.labels
        self._on_bad_image = on_corrupt_image
        self._order = _Order(len(split), self.num_images, batch_size, seed, shuffle, sampler, shard)
        self._batches: DataLoader[Sample] = DataLoader(
            _Pictures(split, transform, seed),
            batch_sampler=self._order,  # type: ignore[arg-type]  # typed as positions; any key will do
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_leave_signals_to_the_main_process if workers else None,
            generator=torch.Generator(),  # or each epoch would draw a number from the global one
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields images (B, 3, S, S), normalised float32 in channels_last, and labels (B,) int64, on the device.

        The workers serve one epoch at a time: leave or finish it before the next.

        Raises:
            InputError: a picture does not decode, unless ``on_corrupt_image`` has it otherwise.
        """
        self._order.epoch, self._order.first = epoch, first
        batch: Batch | None
        for batch, errors in self._batches:
            for error in errors:
                self._on_bad_image(error)
            if batch is not None:
                images, changes, labels = (part.to(self._device, non_blocking=True) for part in batch)
                yield self._finished(images, changes), labels

    def _finished(self, images: Tensor, changes: Tensor) -> Tensor:
        if not changes.shape[1]:
            return self._normalise(images)
        # On a CPU one image at a time, which stays in the cache.
        together = 1 if images.device.type == "cpu" else len(images)
        finished = torch.empty_like(images, dtype=torch.float32, memory_format=torch.channels_last)
        for first in range(0, len(images), together):
            part = slice(first, first + together)
            finished[part] = color_jitter.change_colours(images[part], changes[part])
            self._normalise.in_place(finished[part])
        return finished

    def labels(self, epoch: int) -> Tensor:
        """Those of an epoch, in its order: (num_images,)."""
        return torch.from_numpy(self._labels)[self._order.epoch_order(epoch).positions]


class _Pictures(Dataset[Sample]):
    """Picks, decodes and transforms one image."""

    def __init__(self, split: Split, transform: Transform | FileCrop, seed: int) -> None:
        assert split.paths is not None
        # One array of bytes: each of a million Python objects would be copied into every worker when first pluralize.
        self._paths = np.array([os.fsencode(path) for path in split.paths])
        self._labels = split.labels
        self._transform = transform
        self._seed = seed

    def __getitem__(self, key: Key) -> Sample:
        epoch, position, change = key
        path = Path(os.fsdecode(self._paths[position]))
        # 1 + change, because to the seeding a last 0 is nothing: it would be the generator of the order.
        numbers = (self._seed, epoch, 1 + change)
        try:
            return *self._changed(path, numbers), int(self._labels[position])
        except InputError as error:
            # Returned, because a DataLoader would raise it with the worker's traceback for a message.
            return error

    def _changed(self, path: Path, numbers: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        transform = self._transform
        if isinstance(transform, FileCrop):
            with seeded(*numbers, only_torch=transform.draws_only_from_torch):
                return transform(path)
        image = decode(path)
        with seeded(*numbers):
            return transform(image), color_jitter.NONE


class _Order(Sampler[list[Key]]):
    """The keys of the images of each batch, in the order of an epoch."""

    def __init__(
        self,
        every: int,
        num_images: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        sampler: DrawImages | None,
        shard: Shard,
    ) -> None:
        self.epoch = self.first = 0
        self._every = every
        self._num_images, self._batch_size = num_images, batch_size
        self._seed = seed
        self._shuffle, self._sampler = shuffle, sampler
        self._shard = shard

    def __len__(self) -> int:
        return len(self._shard.batches(self._num_images, self._batch_size))

    def epoch_order(self, epoch: int) -> EpochOrder:
        whole = epoch_order(self._every, epoch, generator(self._seed, epoch), self._shuffle, self._sampler)
        return EpochOrder(*(part[: self._num_images] for part in whole))

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, (positions, changes) = self.epoch, (part.tolist() for part in self.epoch_order(self.epoch))
        for part in self._shard.batches(self._num_images, self._batch_size, self.first):
            yield [(epoch, *key) for key in zip(positions[part], changes[part], strict=True)]


@cache
def _end_workers_at_exit() -> None:
    """Those that are left then would be sent SIGTERM, which they ignore, and waited for."""

    def end() -> None:
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise an error about the first one
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    atexit.register(end)


def _leave_signals_to_the_main_process(worker: int) -> None:
    """Ctrl-C and schedulers signal to all processes of a job; the main one still needs its workers to finish a step."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _collate(samples: list[Sample]) -> tuple[Batch | None, list[InputError]]:
    """The images that decode, if any does, and why the others do not."""
    errors = [sample for sample in samples if isinstance(sample, InputError)]
    sound = [sample for sample in samples if not isinstance(sample, InputError)]
    if not sound:
        return None, errors
    images, changes, labels = zip(*sound, strict=True)
    # As pictures lie in memory: stacked otherwise it takes four times as long.
    stacked = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)
    return (stacked, torch.stack(changes), torch.tensor(labels)), errors
