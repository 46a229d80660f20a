"""What a frozen model says of training images: computed once where memory allows, for training what follows it."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from longtail.data.loading import Batch, Loader
from longtail.data.sampling import class_balanced
from longtail.models.experts import MultiExpert
from longtail.seeds import generator

FLOAT_BYTES = 4


class FrozenOutputs:
    """A `Loader` of class-balanced draws: what all experts say of an image instead of the image.

    Images are those of ``loader``'s first epoch, with its random changes. One pass over them is enough if what the
    experts say fits into ``cache_gib``; otherwise there is a pass in every epoch. Both give the same batches, bit for
    bit: an image that is drawn several times stands as often in its place in the loader's order, which is random.

    Args:
        model: in eval mode.
        loader: the training images.
        batch_size: draws in a batch.
        cache_gib: memory that may be used to keep what the experts say, GiB.
        seed: of the draws.
    """

    def __init__(self, model: MultiExpert, loader: Loader, *, batch_size: int, cache_gib: float, seed: int):
        self.num_images = loader.num_images
        self._model, self._loader = model, loader
        self._batch_size, self._seed = batch_size, seed
        numbers = model.num_experts * (model.num_classes + model.num_features)
        self.is_cached = self.num_images * numbers * FLOAT_BYTES <= cache_gib * 2**30
        self._cache: list[Batch] = []

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_images // self._batch_size)

    def labels(self, epoch: int) -> Tensor:
        """Labels of an epoch's draws, in their order: (num_images,)."""
        own = self._loader.labels(1)
        return own.repeat_interleave(self._times(own, epoch))

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Logits (B, E, C), labels (B,) and features (B, E, D), on the device."""
        if self.is_cached and not self._cache:
            self._cache = list(self._computed())
        times = self._times(self._loader.labels(1), epoch)
        yield from _rebatched(_repeated(self._cache or self._computed(), times), self._batch_size)

    def _times(self, labels: Tensor, epoch: int) -> Tensor:
        """How often each image is drawn: (N,)."""
        drawn = class_balanced(labels, self.num_images, generator(self._seed, epoch))
        return drawn.bincount(minlength=len(labels))

    def _computed(self) -> Iterator[Batch]:
        for images, labels, *_ in self._loader.epoch(1):
            with torch.no_grad():
                logits, features = self._model(images)
            yield logits, labels, features


def _repeated(batches: Iterable[Batch], times: Tensor) -> Iterator[Batch]:
    """Every row as often as ``times`` says."""
    done = 0
    for batch in batches:
        own = times[done : done + len(batch[1])]
        done += len(own)
        # The size is known here: a GPU would be asked, and waited for.
        size, repeats = int(own.sum()), own.to(batch[1].device)
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
