"""The outputs of a frozen part for views of the training images, computed once and kept in files."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.data.loaders import Batch, rows_of
from longtail.runs.context import RunContext
from longtail.runtime.process import Stopped
from longtail.utils.console import with_bar
from longtail.utils.errors import InputError
from longtail.utils.format import pluralize
from longtail.utils.mapped_arrays import MappedArrays

logger = logging.getLogger(__name__)

FLUSH_EVERY = 32
"""Batches between two writes to the disk. A power failure loses what was computed after the last one"""

STORED = torch.float16
"""Type in which outputs are kept"""


class FrozenViews:
    """A `Loader` of training images whose inputs are the outputs of the frozen part instead of images.

    The outputs are kept as float16. In each epoch an image shows its next view. Processes share the work and the files.

    Args:
        context: of the run; its settings say how many views there are, and how they are augmented.
        image_size: height and width of the images, pixels.
        compute: images (B, 3, H, W) to arrays (B, ...): the outputs of the frozen part, and a teacher's logits, if any.
        weights: identifies the weights with which they are computed. Files by other ones are replaced.
    """

    def __init__(
        self, context: RunContext, image_size: int, compute: Callable[[Tensor], tuple[Tensor, ...]], weights: str
    ):
        train, runtime = context.dataset.train, context.runtime
        self._order, self._labels = context.loaders.train_order(context.config.training), torch.from_numpy(train.labels)
        self.num_images, self.batch_size, self.shard = self._order.num_images, self._order.batch_size, self._order.shard
        # Each epoch of the loader gives two views if images are mirrored: as they are, and mirrored.
        self._images = partial(context.loaders.views, train, self.batch_size, flip=False)
        self._per_epoch = 2 if context.config.augmentation.flip else 1
        self._num_views = context.config.training.views
        self._num_epochs = -(-self._num_views // self._per_epoch)
        self._compute, self._device, self._group = compute, runtime.device, runtime.group
        self._signals, self._identity = context.signals, f"{context.fingerprint}\n{weights}"
        outputs = compute(torch.zeros(1, 3, image_size, image_size, device=self._device))
        self._num_batches = -(-len(train) // self.batch_size)
        kind, rows = str(STORED).removeprefix("torch."), self._num_views * len(train)
        done = "uint8", (self._num_epochs, self._num_batches)
        arrays = [(kind, (rows, *_stored(array).shape[1:])) for array in outputs]
        self._files = MappedArrays(context.run.views_folder, [done, *arrays])
        self._arrays: list[np.memmap[Any, Any]] = []

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields batches whose inputs are outputs of the frozen part."""
        self.prepare()
        positions, augment_ids = self._order.draw(epoch)
        rows = (augment_ids + epoch) % self._num_views * len(self._labels) + positions
        for batch in self._order.batches(first):
            inputs, *teacher_logits = self._read(rows[batch.epoch_rows].numpy())
            labels = self._labels[positions[batch.batch]].to(self._device)
            teacher = teacher_logits[0] if teacher_logits else None
            yield Batch(inputs, labels, rows_of(batch), teacher_logits=teacher)

    def first_view(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields outputs for the first view of all images, in their own order, and their labels; batch by batch."""
        self.prepare()
        for rows in np.split(np.arange(len(self._labels)), range(self.batch_size, len(self._labels), self.batch_size)):
            yield self._read(rows)[0], self._labels[rows].to(self._device)

    def prepare(self) -> None:
        """Computes the views that are not in the files. All processes take part.

        Raises:
            InputError: the disk is full.
            Stopped: a signal asked for it; what is computed is kept.
        """
        if self._arrays:
            return
        self._group.barrier()
        if self._group.is_main:
            self._create_files()
        self._group.barrier()
        done, *self._arrays = self._files.open()
        rounds = -(-self._num_batches // self._group.size)  # each process computes a batch in each round
        shard = done[:, self._group.rank :: self._group.size]
        # All processes start with the same round, because they check together whether to stop.
        first = [-self._group.all_reduce_max(-int(flags.argmin() if not flags.all() else rounds)) for flags in shard]
        pending = [(epoch, number) for epoch in range(self._num_epochs) for number in range(first[epoch], rounds)]
        if pending:
            views, size = pluralize(self._num_views, "view"), self._files.num_bytes / 1e9
            logger.info("Computing %s of each training image once (%.1f GB on disk)", views, size)
        images = self._images()  # not an attribute: the processes that decode end with this function
        batches: Iterator[Batch] = iter(())
        for epoch, number in with_bar(pending, "computing views"):
            if self._group.all_reduce_max(int(self._signals.asked_to_stop)):
                raise Stopped
            if number == first[epoch]:
                batches = images.epoch(epoch + 1, number)
            if number < shard.shape[1]:
                self._compute_batch(epoch, self._group.rank + number * self._group.size, next(batches).inputs)
                shard[epoch, number] = 1
            if number % FLUSH_EVERY == FLUSH_EVERY - 1 or number == rounds - 1:
                for array in (*self._arrays, done):  # the notes of what is done last
                    array.flush()
        self._group.barrier()

    def remove(self) -> None:
        """Removes the files."""
        self._arrays = []
        self._group.barrier()
        if self._group.is_main:
            self._files.remove()

    def _create_files(self) -> None:
        try:
            self._files.create(self._identity)
        except OSError as error:
            raise InputError(
                f"training.views is {self._num_views}, for which {self._files.folder} would take "
                f"{self._files.num_bytes / 1e9:.1f} GB: {error.strerror}; use fewer views, or 0 to run the frozen part "
                "in every step"
            ) from error

    def _compute_batch(self, epoch: int, number: int, images: Tensor) -> None:
        start = number * self.batch_size
        for mirror in range(self._per_epoch):
            view = epoch * self._per_epoch + mirror
            if view < self._num_views:
                outputs = self._compute(images.flip(-1) if mirror else images)
                row = view * len(self._labels) + start
                for array, values in zip(self._arrays, outputs, strict=True):
                    array[row : row + len(images)] = _stored(values).cpu().numpy()

    def _read(self, rows: NDArray[np.int64]) -> list[Tensor]:
        return [_restored(torch.from_numpy(array[rows]).to(self._device)) for array in self._arrays]


def _stored(values: Tensor) -> Tensor:
    """Values as they are kept; feature maps (B, C, H, W) with the channels last, where convolutions are fastest."""
    limits = torch.finfo(STORED)
    kept = values.clamp(limits.min, limits.max).to(STORED)
    return kept.permute(0, 2, 3, 1).contiguous() if kept.ndim == 4 else kept


def _restored(values: Tensor) -> Tensor:
    values = values.float()
    return values.permute(0, 3, 1, 2) if values.ndim == 4 else values
