"""Outputs of frozen experts on class-balanced draws of the training images: computed once if they fit into memory."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor

from longtail.data.loaders import Batch, ImagesLoader, Loader, rows_of
from longtail.data.samplers import LongTailSampler
from longtail.models.multi_expert import ExpertOutput, MultiExpert
from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.runtime.process import Signals, Stopped
from longtail.runtime.shard import images_per_epoch

FLOAT_BYTES = 4
Rows = tuple[Tensor, ...]
"""Logits (B, E, C), labels (B,) and features (B, E, D)"""


def cache_bytes(model: MultiExpert, num_images: int, views: int = 1) -> int:
    """Returns the memory that `CachedOutputs` needs."""
    return views * num_images * model.num_experts * (model.num_classes + model.num_features) * FLOAT_BYTES


class CachedOutputs:
    """A `Loader` of class-balanced draws, whose inputs are the outputs of frozen experts instead of images.

    The images are those of ``loader``'s first epochs, with their random augmentations. Each of these epochs is computed
    once. The draws of a batch are independent of one another, but for the turns that the images of a class take, see
    `longtail.data.samplers.draw_positions`.

    Args:
        model: in eval mode.
        loader: the training images.
        batch_size: draws in a batch.
        seed: of the draws.
        views: number of loader epochs, which take turns; each has other augmentations.
        signals: may ask to stop while outputs are computed.
        group: processes that share the computation, batch by batch. Each gets all outputs, and its share of every batch
            of draws.
    """

    def __init__(
        self,
        model: MultiExpert,
        loader: ImagesLoader,
        *,
        batch_size: int,
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
        self._cache: dict[int, Rows] = {}

    def __len__(self) -> int:
        return len(self.shard.batches(self.num_images, self.batch_size))

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields batches whose inputs are `ExpertOutput`s, on the device."""
        view = self._view(epoch)
        if view not in self._cache:
            self._cache[view] = self._filled(view)
        logits, labels, features = self._cache[view]
        draws = self._draw(self._loader.labels(view), epoch).to(labels.device)
        for batch in islice(self.shard.batches(self.num_images, self.batch_size), first, None):
            own = draws[batch.own]
            yield Batch(ExpertOutput(logits[own], features[own]), labels[draws[batch.batch]], rows_of(batch))

    def _view(self, epoch: int) -> int:
        """The loader's epoch that an epoch is made of, both counted from 1."""
        return 1 + (epoch - 1) % self._views

    def _draw(self, labels: Tensor, epoch: int) -> Tensor:
        """The images of an epoch, as positions in the order of the loader: (num_images,)."""
        sampler = LongTailSampler(labels, "class-balanced", num_samples=self._num_draws, seed=self._seed)
        return sampler.positions(epoch)[: self.num_images]

    def _filled(self, view: int) -> Rows:
        """The outputs for all images, in memory that is taken once."""
        rows: Rows = ()
        done = 0
        for batch in self._computed(view):
            rows = rows or tuple(part.new_empty(self._num_draws, *part.shape[1:]) for part in batch)
            for target, part in zip(rows, batch, strict=True):
                target[done : done + len(part)] = part
            done += len(batch[1])
        return rows

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


class ComputedOutputs:
    """As `CachedOutputs`, for outputs that do not fit into memory: those of each draw are computed when it is its turn.

    Args:
        model: in eval mode.
        loader: class-balanced draws of the training images: this process's share of every batch.
        max_images: that go through the model at once.
    """

    def __init__(self, model: MultiExpert, loader: Loader, max_images: int):
        self.num_images, self.batch_size, self.shard = loader.num_images, loader.batch_size, loader.shard
        self._model, self._loader, self._max_images = model, loader, max_images

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields batches whose inputs are `ExpertOutput`s, on the device."""
        for batch in self._loader.epoch(epoch, first):
            with torch.no_grad():
                outputs = [self._model(images) for images in batch.inputs.split(self._max_images)]
            logits, features = (torch.cat(parts) for parts in zip(*(output[:2] for output in outputs), strict=True))
            yield batch._replace(inputs=ExpertOutput(logits, features))
