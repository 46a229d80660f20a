"""Low-rank adapters: LoRA (Hu et al., 2022), section 4.1."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longtail.models.multi_expert import MultiExpert
from longtail.utils.errors import InputError

ALPHA = 16
"""The update of a weight is multiplied by ALPHA / rank"""


class AdaptedLinear(nn.Module):
    """A linear layer with the weight ``W + ALPHA / rank * up @ down``, of which only ``up`` and ``down`` are trained.

    Args:
        layer: with weight W; not changed. ``up`` is zero at first.
        rank: rows of ``down`` and columns of ``up``.
    """

    def __init__(self, layer: nn.Linear, rank: int):
        super().__init__()
        self.layer = layer
        self.factor = ALPHA / rank
        self.down = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    @property
    def weight(self) -> Tensor:
        """The adapted weight: some networks use it directly."""
        return self.layer.weight + self.factor * (self.up @ self.down)

    @property
    def bias(self) -> Tensor | None:
        """That of the layer."""
        return self.layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        outputs: Tensor = self.layer(inputs)
        return outputs + self.factor * F.linear(F.linear(inputs, self.down), self.up)


def add_adapters(model: MultiExpert, rank: int) -> None:
    """Freezes the experts' branches and gives every linear layer in them a low-rank update, in place.

    Args:
        model: of transformer blocks: the attention and the feed-forward part of a block are linear layers.
        rank: of the updates.

    Raises:
        InputError: the branches have no linear layers.
    """
    for branch in (*model.branches, model.neck):
        branch.requires_grad_(False)
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if name.startswith("branches.") and type(layer) is nn.Linear
    ]
    if not layers:
        raise InputError(
            "training.trained_parts is 'lora', which needs a backbone with transformer blocks, such as vit or swin; "
            "for others use 'experts' or 'heads'"
        )
    for name, layer in layers:
        model.set_submodule(name, AdaptedLinear(layer, rank))


def merged(model: MultiExpert) -> MultiExpert:
    """Returns a model of the usual layers with the same outputs: a copy if there are adapters, or else the model."""
    if not any(isinstance(module, AdaptedLinear) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    merge_adapters(model)
    return model


@torch.no_grad()
def merge_adapters(model: MultiExpert) -> None:
    """Adds the adapters to the weights, in place; nothing happens if there are none."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear):
            module.layer.weight.copy_(module.weight)
            model.set_submodule(name, module.layer)
