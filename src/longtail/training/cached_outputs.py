"""What a frozen model says of training images: computed once where memory allows, for training what follows it."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from longtail.data.loaders import Batch, Loader
from longtail.data.samplers import class_balanced
from longtail.models.multi_expert import MultiExpert
from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.runtime.process import Signals, Stopped
from longtail.runtime.seed import generator
from longtail.runtime.shard import images_per_epoch

FLOAT_BYTES = 4


class FrozenOutputs:
    """A `Loader` of class-balanced draws: what all experts say of an image instead of the image.

    Images are those of ``loader``'s first epochs, with their random changes. One pass over each of these is enough if
    what the experts say fits into ``cache_gib``; otherwise there is a pass in every epoch. Both give the same batches,
    bit for bit: an image that is drawn several times stands as often in its place in the loader's order, which is
    random.

    Args:
        model: in eval mode.
        loader: the training images.
        batch_size: draws in a batch.
        cache_gib: memory that may be used to keep what the experts say, GiB.
        seed: of the draws.
        views: epochs of the loader, which take turns: in each an image is changed otherwise.
        signals: what may ask to stop during a pass.
        group: processes that share the work, batch by batch; each gets what all of them computed, and its part of every
            batch of draws.
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
        self.num_images = images_per_epoch(self._num_draws, batch_size, least=group.size)
        self.batch_size, self.shard = batch_size, group.shard
        self._model, self._loader, self._group = model, loader, group
        self._seed, self._views, self._signals = seed, views, signals
        numbers = model.num_experts * (model.num_classes + model.num_features)
        self.is_cached = views * self._num_draws * numbers * FLOAT_BYTES <= cache_gib * 2**30
        self._cache: dict[int, list[Batch]] = {}

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.shard.batches(self.num_images, self.batch_size))

    def labels(self, epoch: int) -> Tensor:
        """Labels of an epoch's draws, in their order: (num_images,)."""
        own = self._loader.labels(self._view(epoch))
        return own.repeat_interleave(self._times(own, epoch))[: self.num_images]

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Logits (B, E, C), labels (B,) and features (B, E, D), on the device."""
        view = self._view(epoch)
        if self.is_cached and view not in self._cache:
            self._cache[view] = list(self._computed(view))
        times = self._times(self._loader.labels(view), epoch)
        said = self._cache[view] if self.is_cached else self._computed(view)
        batches = _rebatched(_repeated(said, times), self.batch_size)
        for batch in islice(batches, first, len(self)):
            part = self.shard.part(0, len(batch[0]))
            yield tuple(tensor[part] for tensor in batch)

    def _view(self, epoch: int) -> int:
        """The loader's epoch that an epoch is made of, both pluralize from 1."""
        return 1 + (epoch - 1) % self._views

    def _times(self, labels: Tensor, epoch: int) -> Tensor:
        """How often each image is drawn: (N,)."""
        drawn = class_balanced(labels, self._num_draws, generator(self._seed, epoch))
        return drawn.bincount(minlength=len(labels))

    def _computed(self, view: int) -> Iterator[Batch]:
        """What is said of all images, whoever computes it."""
        own = iter(self._own(view))
        if self._group.size == 1:
            yield from own
            return
        labels, size = self._loader.labels(view).to(next(self._model.parameters()).device), self._loader.batch_size
        for number, start in enumerate(range(0, self._num_draws, size)):
            self._stop_if_asked()
            theirs = labels[start : start + size]
            source = number % self._group.size
            if source == self._group.rank:
                logits, _, features = next(own)
            else:
                experts = len(theirs), self._model.num_experts
                logits = torch.empty(*experts, self._model.num_classes, device=theirs.device)
                features = torch.empty(*experts, self._model.num_features, device=theirs.device)
            self._group.broadcast((logits, features), source)
            yield logits, theirs, features

    def _own(self, view: int) -> Iterator[Batch]:
        for images, labels, *_ in self._loader.epoch(view):
            if self._group.size == 1:  # several look where all of them are
                self._stop_if_asked()
            with torch.no_grad():
                logits, features = self._model(images)
            yield logits, labels, features

    def _stop_if_asked(self) -> None:
        """All at the same place, where one is: whoever went alone would be waited for."""
        if self._signals is not None and self._group.all_reduce_max(int(self._signals.asked_to_stop)):
            raise Stopped  # nothing has been learnt since the last step


def _repeated(batches: Iterable[Batch], times: Tensor) -> Iterator[Batch]:
    """Every row as often as ``times`` says."""
    done, on_device = 0, None
    for batch in batches:
        on_device = times.to(batch[1].device) if on_device is None else on_device
        own = slice(done, done + len(batch[1]))
        done = own.stop
        # The size is known here: a GPU would be asked, and waited for.
        size, repeats = int(times[own].sum()), on_device[own]
        yield tuple(part.repeat_interleave(repeats, dim=0, output_size=size) for part in batch)


def _rebatched(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """The same rows, ``size`` at a time."""
    rest: Batch = ()
    for batch in batches:
        rest = tuple(torch.cat(pair) for pair in zip(rest, batch, strict=True)) if rest else batch
        while len(rest[1]) >= size:
            yield tuple(part[:size] for part in rest)
            rest = tuple(part[size:] for part in rest)
    if rest and len(rest[1]):
        yield rest
