"""Activation checkpointing: blocks are computed again during backward instead of keeping their activations.

Chen et al., 2016, "Training deep nets with sublinear memory cost". It saves memory and costs time: only the input of
each block is kept, and each block runs a second time during backward. Losses, gradients and buffers are bit-identical.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from longtail.utils.errors import InputError


def checkpoint_activations(model: nn.Module) -> int:
    """Checkpoints the activations of every block of a model; returns the number of blocks.

    Only training with gradients changes. The state dict keeps its names, and the model can be copied and pickled.
    Blocks are found by structure, see `_blocks`, which works for split networks and for all networks of timm. (timm's
    ``set_grad_checkpointing`` needs unsplit networks, and updates the running statistics of batch norms twice.)

    Args:
        model: it is changed in place. A second call changes nothing.

    Raises:
        InputError: the model has no blocks.
    """
    blocks = list(_blocks(model))
    if not blocks:
        raise InputError(f"activations of {type(model).__name__} cannot be checkpointed: it has no blocks")
    for block in blocks:
        block.forward = _Checkpointed(block)  # type: ignore[method-assign]
    return len(blocks)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yields the smallest modules with at least two layers that are in a container, such as ``BasicBlock``.

    A branch without such modules is a block itself, because it is in the model's list of branches.
    """
    in_container = _is_container(module)
    for child in module.children():
        inner = list(_blocks(child))
        if inner:
            yield from inner
        elif in_container and not _is_container(child) and _num_layers(child) >= 2:
            yield child


def _is_container(module: nn.Module) -> bool:
    """Whether a module is a list of modules, by its class or because all children have the same class (RegNet)."""
    plain = type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return plain or len({type(child) for child in module.children()}) == 1


def _num_layers(module: nn.Module) -> int:
    return sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in module.modules())


class _Checkpointed:
    """The forward function of a checkpointed block; an object, which is copied and pickled along with the block."""

    def __init__(self, block: nn.Module):
        self.block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        block = self.block
        if not (block.training and torch.is_grad_enabled()):
            return type(block).forward(block, *args, **kwargs)
        # Flat, so that autograd keeps each tensor and detects changes in place, and so that a list that grows after
        # this call (the features of DenseNet) is kept as it is now.
        leaves, structure = tree_flatten((args, kwargs))

        def run(*leaves: Any) -> Any:
            args, kwargs = tree_unflatten(leaves, structure)
            return type(block).forward(block, *args, **kwargs)

        if torch.compiler.is_compiling():  # compiled graphs never update buffers in backward, and accept no contexts
            return checkpoint(run, *leaves, use_reentrant=False)
        return checkpoint(
            run, *leaves, use_reentrant=False, context_fn=lambda: (nullcontext(), _temporary_buffers(block))
        )


@contextmanager
def _temporary_buffers(block: nn.Module) -> Iterator[None]:
    """Lets a block update copies of its buffers: batch norms have counted the batch in the first run."""
    kept = [(module, module._buffers) for module in block.modules()]
    try:
        for module, buffers in kept:
            module._buffers = {
                name: None if buffer is None else buffer.detach().clone() for name, buffer in buffers.items()
            }
        yield
    finally:
        for module, buffers in kept:
            module._buffers = buffers
