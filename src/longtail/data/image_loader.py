"""Batches from image files, decoded in worker processes. They do not depend on the number of workers."""

import atexit
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from longtail.data import color_jitter
from longtail.data.corrupt_images import SKIP_HINT
from longtail.data.fast_crop import FileCrop
from longtail.data.image_io import decode
from longtail.data.loaders import Batch, EpochOrder, Normalise, rows_of
from longtail.data.splits import ImageSplit
from longtail.data.transforms import Transform
from longtail.runtime.process import STOPPING
from longtail.runtime.seed import seeded
from longtail.utils.errors import InputError

Key = tuple[int, int, int]
"""(epoch, position in the split, number of the random augmentation)"""
View = tuple[Tensor, Tensor]
"""Pixels of an image, or of several, and the color changes that are left to the device"""
Sample = tuple[list[View], int] | InputError
"""The views of an image, and its label"""
Samples = tuple[list[View], Tensor]

SHARED_MEMORY = "/dev/shm"
"""Where Linux keeps the tensors that workers send; 64 MB in a container by default"""

PATIENCE = 600.0
"""Seconds without a batch after which the workers are given up"""


class ImageLoader:
    """A `Loader` of image files.

    Random augmentations depend on the seed, the epoch and the image (see `EpochOrder.draw`). So an epoch can be
    repeated without those before it, with any number of workers, and leaves the global generators alone.

    Args:
        split: images with paths.
        transform: an image to a uint8 tensor (3, S, S); may draw from the global generators of torch, NumPy and Python.
            A `FileCrop` gets the path instead.
        order: of the images in each epoch.
        device: where batches are put.
        normalise: pixels to network inputs.
        workers: processes that decode; 0 decodes in this one. They live as long as the loader.
        other_views: transforms of further views of each image in a batch.
    """

    def __init__(
        self,
        split: ImageSplit,
        transform: Transform | FileCrop,
        order: EpochOrder,
        *,
        device: torch.device,
        normalise: Normalise,
        workers: int = 0,
        other_views: Sequence[Transform | FileCrop] = (),
    ) -> None:
        if workers:
            _kill_workers_at_exit()
        self.num_images, self.batch_size, self.shard = order.num_images, order.batch_size, order.shard
        self._order, self._device = order, device
        self._normalise = normalise
        self._labels = split.labels
        self._keys = _BatchKeys(order)
        self._has_workers, self._workers = workers > 0, _Workers()
        self._batches: DataLoader[Sample] = DataLoader(
            _ImageFiles(split, [transform, *other_views], order.seed),
            batch_sampler=self._keys,  # type: ignore[arg-type]  # typed as positions; any key works
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            worker_init_fn=_ignore_signals if workers else None,
            generator=torch.Generator(),  # or each epoch would draw a number from the global one
        )

    def __len__(self) -> int:
        return len(self._order)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields batches of images (V * B, 3, S, S), normalised float32 in channels-last memory.

        The workers serve one epoch at a time: finish it, or leave it, before the next.

        Raises:
            InputError: an image does not decode; or a worker was killed, or nothing came from the workers for
                `PATIENCE` seconds.
        """
        self._keys.epoch, self._keys.first = epoch, first
        shares_batches = self.shard.size > 1 and not self.shard.full_batches
        all_labels = self.labels(epoch).to(self._device) if shares_batches else None
        for batch, samples in zip(self._order.batches(first), self._decoded(), strict=True):
            if isinstance(samples, InputError):
                # A new error: the traceback of `samples` would refer to this frame, which refers to `samples`. Such a
                # cycle is collected late, in an order in which the queues close before the workers are told to end.
                raise InputError(f"{samples}; {SKIP_HINT}")
            views, own_labels = samples
            labels = self._to_device(own_labels) if all_labels is None else all_labels[batch.batch]
            finished = [self._finish(*map(self._to_device, view)) for view in views]
            inputs = finished[0] if len(finished) == 1 else torch.cat(finished)
            yield Batch(inputs, labels, rows_of(batch), num_views=len(views))

    def _decoded(self) -> Iterator[Samples | InputError]:
        """The batches of the `DataLoader`, which itself would wait forever."""
        batches: Iterator[Any] | None = None
        while True:
            try:
                if batches is None:
                    with self._waiting():  # a wait of its own: torch replaces the handler of this one
                        others = multiprocessing.active_children()
                        batches = iter(self._batches)
                        self._workers.processes += [
                            child for child in multiprocessing.active_children() if child not in others
                        ]
                with self._waiting():
                    batch = next(batches, None)
            except BaseException as error:
                self._workers.end()  # a stopped one would be waited for
                _forget_workers(self._batches._iterator)
                if problem := self._problem(error, is_started=batches is not None):
                    break
                raise
            if batch is None:
                return
            yield batch
        # A new error, as in `epoch`.
        raise InputError(
            f"{problem}: memory or shared memory ({SHARED_MEMORY}) is full, or the disk does not answer; reduce "
            "data.workers, 0 decodes in the main process"
        )

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Within it, the death of a worker is an error, and so is a wait of `PATIENCE` seconds.

        The time limit of `DataLoader` is not for a worker that freezes while it sends.
        """
        if not self._has_workers:
            yield
            return
        workers, ended = self._workers, threading.Event()
        # A method of this object would keep it, and with it the workers, until the thread ends.
        threading.Thread(target=_limit, args=(workers, PATIENCE, ended), daemon=True).start()
        try:  # an interrupt may come anywhere
            with workers.watched():
                yield
        finally:
            ended.set()

    def _problem(self, error: BaseException, is_started: bool) -> str:
        """Says what is wrong with the workers; empty for other errors."""
        if isinstance(error, OSError) and not is_started:
            return f"the processes that decode images cannot start ({error.strerror})"
        if self._workers.gave_up:
            return f"no image was decoded for {PATIENCE / 60:g} minutes"
        is_killed = isinstance(error, _WorkerKilledError | EOFError | ConnectionError)
        return "a process that decodes images was killed" if is_killed or str(error).startswith("DataLoader w") else ""

    def _to_device(self, values: Any) -> Tensor:
        return torch.as_tensor(values).to(self._device, non_blocking=True)

    def _finish(self, images: Tensor, changes: Tensor) -> Tensor:
        if not changes.shape[1]:
            return self._normalise(images)
        # On a CPU one image at a time, which stays in the cache.
        step = 1 if images.device.type == "cpu" else len(images)
        finished = torch.empty_like(images, dtype=torch.float32, memory_format=torch.channels_last)
        for first in range(0, len(images), step):
            part = slice(first, first + step)
            finished[part] = color_jitter.change_colours(images[part], changes[part])
            self._normalise.in_place(finished[part])
        return finished

    def labels(self, epoch: int) -> Tensor:
        """The labels of an epoch's images in their order: (num_images,), on the CPU."""
        return torch.from_numpy(self._labels)[self._order.draw(epoch).positions]


class _Workers:
    """The processes that decode."""

    def __init__(self) -> None:
        self.processes: list[BaseProcess] = []
        self.gave_up = False
        self._is_watched = False

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within it, the death of a process is an error, at once in the main thread.

        torch's handler, which another `DataLoader` may have left, would raise it anywhere, as within a step.
        """
        before = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
        is_signalled = before is not None and threading.current_thread() is threading.main_thread()
        self._is_watched = True
        try:
            if is_signalled:
                signal.signal(signal.SIGCHLD, self._check)
            self._check()
            yield
        finally:
            self._is_watched = False
            if is_signalled:
                is_torch = str(getattr(before, "__module__", "")).startswith("torch.")
                signal.signal(signal.SIGCHLD, signal.SIG_DFL if is_torch else before)

    def _check(self, *signal_and_frame: Any) -> None:
        if self._is_watched and not all(process.is_alive() for process in self.processes):
            self._is_watched = False  # the death of the next one must not interrupt what this error leads to
            raise _WorkerKilledError

    def end(self) -> None:
        """Kills them; that is no error."""
        self._is_watched = False
        self._kill()

    def give_up(self) -> None:
        """Kills them because they do not answer."""
        self.gave_up = True
        self._kill()

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()


def _limit(workers: _Workers, seconds: float, ended: threading.Event) -> None:
    """Gives the workers up unless the wait ends in time. Counts short waits: all processes may be paused meanwhile."""
    if not any(ended.wait(seconds / 20) for _ in range(20)):
        workers.give_up()


def _forget_workers(iterator: Any) -> None:
    """Lets torch end its iterator without waiting forever for what killed workers may have held.

    That is the lock of an event, and half of a message for which the thread that pins memory waits.
    """
    if iterator is None:
        return
    iterator._workers_done_event = threading.Event()
    if hasattr(iterator, "_pin_memory_thread"):
        iterator._pin_memory_thread_done_event.set()
        del iterator._pin_memory_thread


class _WorkerKilledError(BaseException):
    """A worker was killed. torch would catch an `Exception`, and wait for the lock of an event that the worker had."""


class _ImageFiles(Dataset[Sample]):
    """Decodes and augments one image."""

    def __init__(self, split: ImageSplit, transforms: list[Transform | FileCrop], seed: int) -> None:
        assert split.paths is not None
        # One array of bytes: with a million Python objects, each would be copied into every worker at its first use.
        self._paths = np.array([os.fsencode(path) for path in split.paths])
        self._labels = split.labels
        self._transforms = transforms
        self._seed = seed

    def __getitem__(self, key: Key) -> Sample:
        epoch, position, augment_id = key
        path = Path(os.fsdecode(self._paths[position]))
        # 1 + id, because seeding ignores a last 0: the result would be the generator of the order.
        numbers = (self._seed, epoch, 1 + augment_id)
        try:
            return self._views(path, numbers), int(self._labels[position])
        except InputError as error:
            # Returned, because a DataLoader would raise it with the worker's traceback as its message.
            return error

    def _views(self, path: Path, numbers: tuple[int, ...]) -> list[View]:
        if isinstance(self._transforms[0], FileCrop):  # then all are; each decodes another part of the file
            crops = cast("list[FileCrop]", self._transforms)
            with seeded(*numbers, only_torch=all(crop.draws_only_from_torch for crop in crops)):
                return [crop(path) for crop in crops]
        transforms, image = cast("list[Transform]", self._transforms), decode(path)
        with seeded(*numbers):
            return [(transform(image), color_jitter.NONE) for transform in transforms]


class _BatchKeys(Sampler[list[Key]]):
    """The keys of this process's images in each batch of an epoch."""

    def __init__(self, order: EpochOrder) -> None:
        self.epoch = self.first = 0
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, (positions, augment_ids) = self.epoch, (part.tolist() for part in self._order.draw(self.epoch))
        for batch in self._order.batches(self.first):
            rows = batch.epoch_rows
            yield [(epoch, *key) for key in zip(positions[rows], augment_ids[rows], strict=True)]


@cache
def _kill_workers_at_exit() -> None:
    """Kills the workers that are left at exit. Otherwise Python would send SIGTERM, which they ignore, and wait."""

    def end() -> None:
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would raise an error about the first one
        for process in multiprocessing.active_children():
            if process.daemon:
                process.kill()

    atexit.register(end)


def _ignore_signals(worker: int) -> None:
    """Ctrl-C and schedulers signal all processes of a job; the main process needs its workers to finish a step."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _collate(samples: list[Sample]) -> Any:
    """Stacks the images, or returns the error of the first one that does not decode."""
    decoded = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        decoded.append(sample)
    images, labels = zip(*decoded, strict=True)
    views = [_stacked(view) for view in zip(*images, strict=True)]
    targets = torch.tensor(labels)
    worker, num_bytes = get_worker_info(), sum(pixels.nbytes for pixels, _ in views)
    if worker is not None and not _fits_into_shared_memory(2 * worker.num_workers * num_bytes):
        # Arrays travel through a pipe, which is slower. A tensor that does not fit would be lost.
        return [(pixels.numpy(), changes.numpy()) for pixels, changes in views], targets.numpy()
    return views, targets


def _stacked(view: Sequence[View]) -> View:
    """One view of several images."""
    images, changes = zip(*view, strict=True)
    # In the memory order of images: stacking in another order takes four times as long.
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2), torch.stack(changes)


def _fits_into_shared_memory(size: int) -> bool:
    try:
        return shutil.disk_usage(SHARED_MEMORY).free >= size
    except OSError:  # another system
        return True
