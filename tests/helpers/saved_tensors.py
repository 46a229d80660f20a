"""Memory that autograd keeps for backward."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SavedBytes:
    """Sum of the sizes of all saved storages, without parameters and buffers."""

    def __init__(self, model: nn.Module):
        self._excluded = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self._sizes: dict[int, int] = {}

    @property
    def total(self) -> int:
        """Bytes. Read it while the graph exists."""
        return sum(self._sizes.values())

    def save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._excluded:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its operation saves must not keep itself alive


@contextmanager
def saved_bytes(model: nn.Module) -> Iterator[SavedBytes]:
    """Counts what forward passes inside the context save."""
    saved = SavedBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(saved.save, lambda tensor: tensor):
        yield saved
