"""What a frozen model says of training images: computed once where memory allows, for training what follows it."""

from collections.abc import Iterator

import torch
from torch import Tensor

from longtail.data.loading import Batch, Loader
from longtail.data.sampling import class_balanced
from longtail.models.experts import MultiExpert
from longtail.seeds import generator

FLOAT_BYTES = 4


class FrozenOutputs:
    """A `Loader` of class-balanced draws: what all experts say of an image instead of the image.

    One pass over ``loader``'s first epoch (its order, and its random changes) is all that an image is ever seen in. If
    what the experts say fits into ``cache_gib``, the pass happens once, and an epoch is draws in random order. If not,
    it happens in every epoch, over the images that have been drawn and in the loader's order; each still goes through
    the model once at most.

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
        self._cache: Batch | None = None
        self._labels = Tensor()

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-self.num_images // self._batch_size)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Logits (B, E, C), labels (B,) and features (B, E, D), on the device."""
        draws = generator(self._seed, epoch)
        if not self.is_cached:
            yield from self._recomputed(draws)
            return
        if self._cache is None:
            self._cache = tuple(torch.cat(parts) for parts in zip(*self._pass(), strict=True))
        logits, labels, features = self._cache
        for positions in torch.split(class_balanced(labels, self.num_images, draws), self._batch_size):
            at = positions.to(labels.device)
            yield logits[at], labels[at], features[at]

    def _pass(self) -> Iterator[Batch]:
        for images, labels, *_ in self._loader.epoch(1):
            yield self._outputs(images, labels)

    def _recomputed(self, draws: torch.Generator) -> Iterator[Batch]:
        if not len(self._labels):  # a first pass for the labels, which only the loader knows in its order
            self._labels = torch.cat([labels.cpu() for _, labels, *_ in self._loader.epoch(1)])
        times = class_balanced(self._labels, self.num_images, draws).bincount(minlength=len(self._labels))
        done, waiting = 0, list[Batch]()
        for images, labels, *_ in self._loader.epoch(1):
            own = times[done : done + len(labels)]
            done += len(labels)
            drawn = own.nonzero().squeeze(1).to(labels.device)
            if len(drawn):
                repeats = own[own > 0].to(labels.device)
                outputs = self._outputs(images[drawn], labels[drawn])
                waiting.append(tuple(part.repeat_interleave(repeats, dim=0) for part in outputs))
            while sum(len(batch[1]) for batch in waiting) >= self._batch_size:
                joined = tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))
                yield tuple(part[: self._batch_size] for part in joined)
                waiting = [tuple(part[self._batch_size :] for part in joined)]
        if waiting and len(waiting[0][1]):
            yield tuple(torch.cat(parts) for parts in zip(*waiting, strict=True))

    def _outputs(self, images: Tensor, labels: Tensor) -> Batch:
        with torch.no_grad():
            logits, features = self._model(images)
        return logits, labels, features
