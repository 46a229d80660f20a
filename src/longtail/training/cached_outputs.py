"""The outputs of frozen experts on training images, computed once if they fit into memory."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from longtail.data.loaders import Batch, Loader, rows_of
from longtail.data.samplers import LongTailSampler
from longtail.models.multi_expert import ExpertOutput, MultiExpert
from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.runtime.process import Signals, Stopped
from longtail.runtime.shard import images_per_epoch

FLOAT_BYTES = 4
Rows = tuple[Tensor, ...]
"""Logits (B, E, C), labels (B,) and features (B, E, D)"""


class FrozenOutputs:
    """A `Loader` of class-balanced draws, whose inputs are the outputs of frozen experts instead of images.

    The images are those of ``loader``'s first epochs, with their random augmentations. If the outputs fit into
    ``cache_gib``, each of these epochs is computed once; otherwise it is computed in every epoch. Both give the same
    batches, bit for bit: an image that is drawn several times is repeated at its place in the loader's random order.

    Args:
        model: in eval mode.
        loader: the training images.
        batch_size: draws in a batch.
        cache_gib: memory for the cache, GiB.
        seed: of the draws.
        views: number of loader epochs, which take turns; each has other augmentations.
        signals: may ask to stop while outputs are computed.
        group: processes that share the computation, batch by batch. Each gets all outputs, and its share of every batch
            of draws.
    """

    def __init__(
        self,
        model: MultiExpert,
        loader: Loader,
        *,
        batch_size: int,
        cache_gib: float,
        seed: int,
        views: int = 1,
        signals: Signals | None = None,
        group: Group = SINGLE_PROCESS,
    ):
        self._num_draws = loader.num_images
        self.num_images = images_per_epoch(self._num_draws, batch_size, min_batch=group.size)
        self.batch_size, self.shard = batch_size, group.shard
        self._model, self._loader, self._group = model, loader, group
        self._seed, self._views, self._signals = seed, views, signals
        numbers = model.num_experts * (model.num_classes + model.num_features)
        self.is_cached = views * self._num_draws * numbers * FLOAT_BYTES <= cache_gib * 2**30
        self._cache: dict[int, list[Rows]] = {}

    def __len__(self) -> int:
        return len(self.shard.batches(self.num_images, self.batch_size))

    def labels(self, epoch: int) -> Tensor:
        """The labels of an epoch's draws, in order: (num_images,)."""
        labels = self._loader.labels(self._view(epoch))
        return labels.repeat_interleave(self._repeats(labels, epoch))[: self.num_images]

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields batches whose inputs are `ExpertOutput`s, on the device."""
        view = self._view(epoch)
        if self.is_cached and view not in self._cache:
            self._cache[view] = list(self._computed(view))
        repeats = self._repeats(self._loader.labels(view), epoch)
        outputs = self._cache[view] if self.is_cached else self._computed(view)
        slices = self.shard.batches(self.num_images, self.batch_size)
        batches = zip(slices, _rebatched(_repeated(outputs, repeats), self.batch_size), strict=False)
        for position, (logits, labels, features) in islice(batches, first, None):
            rows = position.rows
            yield Batch(ExpertOutput(logits[rows], features[rows]), labels, rows_of(position))

    def _view(self, epoch: int) -> int:
        """The loader's epoch that an epoch is made of, both counted from 1."""
        return 1 + (epoch - 1) % self._views

    def _repeats(self, labels: Tensor, epoch: int) -> Tensor:
        """How often each image is drawn: (N,)."""
        sampler = LongTailSampler(labels, "class-balanced", num_samples=self._num_draws, seed=self._seed)
        return sampler.positions(epoch).bincount(minlength=len(labels))

    def _computed(self, view: int) -> Iterator[Rows]:
        """The outputs for all images, whichever process computes them."""
        own = iter(self._own(view))
        if self._group.size == 1:
            yield from own
            return
        all_labels, size = self._loader.labels(view).to(next(self._model.parameters()).device), self._loader.batch_size
        for number, start in enumerate(range(0, self._num_draws, size)):
            self._stop_if_asked()
            labels = all_labels[start : start + size]
            source = number % self._group.size
            if source == self._group.rank:
                logits, _, features = next(own)
            else:
                shape = len(labels), self._model.num_experts
                logits = torch.empty(*shape, self._model.num_classes, device=labels.device)
                features = torch.empty(*shape, self._model.num_features, device=labels.device)
            self._group.broadcast((logits, features), source)
            yield logits, labels, features

    def _own(self, view: int) -> Iterator[Rows]:
        for batch in self._loader.epoch(view):
            if self._group.size == 1:  # several processes check together, in `_computed`
                self._stop_if_asked()
            with torch.no_grad():
                output = self._model(batch.inputs)
            yield output.logits, batch.labels, output.features

    def _stop_if_asked(self) -> None:
        """All ranks stop together; otherwise the others would deadlock."""
        if self._signals is not None and self._group.all_reduce_max(int(self._signals.asked_to_stop)):
            raise Stopped  # nothing was learned since the last step


def _repeated(batches: Iterable[Rows], repeats: Tensor) -> Iterator[Rows]:
    """Repeats each row as often as ``repeats`` says."""
    done, on_device = 0, None
    for batch in batches:
        on_device = repeats.to(batch[1].device) if on_device is None else on_device
        rows = slice(done, done + len(batch[1]))
        done = rows.stop
        # The size is known on the CPU; otherwise a GPU would be waited for.
        size, counts = int(repeats[rows].sum()), on_device[rows]
        yield tuple(part.repeat_interleave(counts, dim=0, output_size=size) for part in batch)


def _rebatched(batches: Iterable[Rows], size: int) -> Iterator[Rows]:
    """The same rows in batches of ``size``."""
    rest: Rows = ()
    for batch in batches:
        rest = tuple(torch.cat(pair) for pair in zip(rest, batch, strict=True)) if rest else batch
        while len(rest[1]) >= size:
            yield tuple(part[:size] for part in rest)
            rest = tuple(part[size:] for part in rest)
    if rest and len(rest[1]):
        yield rest
