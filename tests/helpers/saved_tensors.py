"""What autograd keeps for backward, in bytes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SavedBytes:
    """Sum over storages; parameters and buffers, which are there anyway, are left out."""

    def __init__(self, model: nn.Module):
        self._known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self._sizes: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Bytes, to be read while the graph is alive."""
        return sum(self._sizes.values())

    def save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that is saved by its own operation must not keep itself alive


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[SavedBytes]:
    """Counts what the forward passes inside keep."""
    saved = SavedBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.save, lambda tensor: tensor):
        yield saved
