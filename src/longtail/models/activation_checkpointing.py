"""Activation checkpointing: building blocks compute their insides again instead of keeping them for backward.

Chen et al., 2016, "Training deep nets with sublinear memory cost". Memory for time: of every block only the input is
kept, and each block runs a second time during backward. Losses, gradients and buffers stay the same to the bit.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from longtail.utils.errors import InputError


def checkpoint_activations(model: nn.Module) -> int:
    """Makes every building block of a model recompute its activations during backward; returns how many there are.

    Only training with gradients changes. Names in the state dict stay, and the model can still be copied and pickled.
    Building blocks are found by how they are put together, see `_blocks`, so that cut networks and all networks of
    timm are served alike. (timm's own ``set_grad_checkpointing`` needs whole networks, and updates the running
    statistics of batch norm twice.)

    Args:
        model: such as a `longtail.models.multi_expert.MultiExpert`; changed in place. A second call changes nothing.

    Raises:
        InputError: the model has no building blocks.
    """
    blocks = list(_blocks(model))
    if not blocks:
        raise InputError(f"activations of {type(model).__name__} cannot be checkpointed: it is not made of blocks")
    for block in blocks:
        block.forward = _Recomputed(block)  # type: ignore[method-assign]
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The smallest modules with at least two layers that are listed in a container, such as ``BasicBlock``.

    Where a branch has no such parts, it is itself one of the blocks, listed in the model's branches.
    """
    listed = _is_container(module)
    for child in module.children():
        inner = list(_blocks(child))
        if inner:
            yield from inner
        elif listed and not _is_container(child) and _num_layers(child) >= 2:
            yield child


def _is_container(module: nn.Module) -> bool:
    """Whether a module is a list of others, by its class or (stages of RegNet) because its parts are all of one."""
    plain = type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return plain or len({type(child) for child in module.children()}) == 1


def _num_layers(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules())


class _Recomputed:
    """The forward of a checkpointed block: an object, which can be copied and pickled along with the block."""

    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, *args: Any, **options: Any) -> Any:
        block = self.block
        if not (block.training and torch.is_grad_enabled()):
            return type(block).forward(block, *args, **options)
        # Flat, so that every tensor is kept as autograd keeps tensors (guarded against changes in place), and so that
        # a list that grows after this call (DenseNet's features) is kept as it is now.
        leaves, structure = tree_flatten((args, options))

        def run(*leaves: Any) -> Any:
            args, options = tree_unflatten(leaves, structure)
            return type(block).forward(block, *args, **options)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _throwaway_buffers(block)

        if torch.compiler.is_compiling():  # compiled graphs never update buffers in backward, and take no contexts
            return checkpoint(run, *leaves, use_reentrant=False)
        return checkpoint(run, *leaves, use_reentrant=False, context_fn=contexts)


@contextmanager
def _throwaway_buffers(block: nn.Module) -> Iterator[None]:
    """While the block runs again, it updates copies of its buffers: batch norm has pluralize the batch already."""
    kept = [(module, module._buffers) for module in block.modules()]
    try:
        for module, buffers in kept:
            module._buffers = {name: _copy(buffer) for name, buffer in buffers.items()}
        yield
    finally:
        for module, buffers in kept:
            module._buffers = buffers


def _copy(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.detach().clone()
