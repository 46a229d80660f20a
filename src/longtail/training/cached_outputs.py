"""Outputs of frozen experts on class-balanced draws of the training images: computed once if they fit into memory."""

from collections.abc import Iterator

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
        view = 1 + (epoch - 1) % self._views  # the epoch of the loader; both are counted from 1
        if view not in self._cache:
            self._cache[view] = self._filled(view)
        logits, labels, features = self._cache[view]
        draws = self._draw(self._loader.labels(view), epoch).to(labels.device)
        for batch in self.shard.batches(self.num_images, self.batch_size, first):
            rows = draws[batch.epoch_rows]
            yield Batch(ExpertOutput(logits[rows], features[rows]), labels[draws[batch.batch]], rows_of(batch))

    def _draw(self, labels: Tensor, epoch: int) -> Tensor:
        """The images of an epoch, as positions in the order of the loader: (num_images,)."""
        sampler = LongTailSampler(labels, "class-balanced", num_samples=self._num_draws, seed=self._seed)
        return sampler.positions(epoch)[: self.num_images]

    def _filled(self, view: int) -> Rows:
        """The outputs for all images, whichever process computes them."""
        model, group, size = self._model, self._group, self._loader.batch_size
        labels = self._loader.labels(view).to(next(model.parameters()).device)
        shape = len(labels), model.num_experts
        logits = torch.empty(*shape, model.num_classes, device=labels.device)
        features = torch.empty(*shape, model.num_features, device=labels.device)
        batches = iter(self._loader.epoch(view))
        for number, start in enumerate(range(0, len(labels), size)):
            # All processes stop together; otherwise the others would wait forever.
            if self._signals is not None and group.all_reduce_max(int(self._signals.asked_to_stop)):
                raise Stopped  # nothing was learned since the last step
            rows, source = slice(start, start + size), number % group.size
            if source == group.rank:
                with torch.no_grad():
                    output = model(next(batches).inputs)
                logits[rows], features[rows] = output.logits, output.features
            group.broadcast((logits[rows], features[rows]), source)
        return logits, labels, features


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
