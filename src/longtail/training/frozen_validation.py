"""The outputs of a frozen part for the validation images, computed once if they fit into memory."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from longtail.data.loaders import Batch, Loader
from longtail.data.views import num_views


class FrozenValidation:
    """A `Loader` of images in their own order, whose inputs are the outputs of the frozen part instead of images.

    Args:
        loader: the images, without random augmentation.
        compute: the frozen part: images (B, 3, H, W) to outputs (B, ...).
        max_bytes: memory of this process for the outputs; if they need more, each epoch computes them again.
    """

    def __init__(self, loader: Loader, compute: Callable[[Tensor], Tensor], max_bytes: float):
        self.num_images, self.batch_size, self.shard = loader.num_images, loader.batch_size, loader.shard
        self.num_views = num_views(loader)
        self._loader, self._compute, self._max_bytes = loader, compute, max_bytes
        self._batches: list[Batch] = []

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields batches of outputs, which are the same in every epoch."""
        if len(self._batches) == len(self):
            yield from self._batches[first:]
            return
        kept: list[Batch] = []
        for batch in self._loader.epoch(epoch, first):
            with torch.no_grad():
                batch = batch._replace(inputs=self._compute(batch.inputs))
            yield batch
            if first == 0 and len(self) * batch.inputs.nbytes <= self._max_bytes:
                kept.append(batch)
        self._batches = kept
