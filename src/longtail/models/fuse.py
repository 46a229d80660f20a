"""Batch norms as part of the convolutions before them, for faster inference."""

import copy
from collections import defaultdict
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.autograd.graph import Node
from torch.nn.utils.fusion import fuse_conv_bn_eval

from longtail.models.multi_expert import MultiExpert
from longtail.models.split import Identity


def fuse_batch_norms(model: MultiExpert, image_size: int) -> MultiExpert:
    """Returns a faster copy in eval mode with the same outputs, except for rounding. Do not train or save it.

    In eval mode a batch norm multiplies each channel by a factor and adds a constant. The convolution before it can do
    both with other weights. A batch norm is fused if it is the only operation that uses the output of a convolution.
    Everything else stays as it is, so any network is accepted.

    Args:
        model: on any device, in either mode; it is not changed.
        image_size: height and width of the images, pixels.
    """
    fused = copy.deepcopy(model).eval()
    for convolution_name, norm_name in _pairs(fused, image_size):
        norm: Any = fused.get_submodule(norm_name)
        convolution: Any = fused.get_submodule(convolution_name)
        fused.set_submodule(convolution_name, fuse_conv_bn_eval(convolution, norm))
        # timm's batch norms contain the activation that follows.
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else Identity()
        fused.set_submodule(norm_name, rest)
    return fused


def _pairs(model: MultiExpert, image_size: int) -> list[tuple[str, str]]:
    """Returns the names of the convolutions and batch norms to fuse, found in the autograd graph."""
    with torch.inference_mode(False), torch.enable_grad():
        model = copy.deepcopy(model).to("meta").requires_grad_()
        output = model(torch.empty(1, 3, image_size, image_size, device="meta"))
    users = _users([output.logits.grad_fn, output.features.grad_fn])
    weights = {leaf.variable: nodes for leaf, nodes in users.items() if hasattr(leaf, "variable")}
    operations: dict[Any, tuple[str, nn.Module]] = {}  # the operation of each module that runs once
    for name, module in model.named_modules():
        # Subclasses, such as timm's standardised convolutions, compute something else.
        if type(module) in (nn.Conv2d, nn.BatchNorm2d, BatchNormAct2d) and len(weights.get(module.weight, ())) == 1:
            operations[weights[module.weight][0]] = name, module
    pairs = []
    for norm, (norm_name, module) in operations.items():
        source = norm.next_functions[0][0]
        convolution_name, convolution = operations.get(source, ("", nn.Identity()))
        is_norm = type(module) is not nn.Conv2d and module.track_running_stats
        if is_norm and type(convolution) is nn.Conv2d and len(users[source]) == 1:
            pairs.append((convolution_name, norm_name))
    return pairs


def _users(outputs: list[Node | None]) -> dict[Node, list[Node | None]]:
    """Returns the operations that use the result of each operation; None stands for the outputs."""
    users: dict[Node, list[Node | None]] = defaultdict(list)
    pending: list[tuple[Node | None, Node | None]] = [(output, None) for output in outputs]
    while pending:
        node, user = pending.pop()
        if node is not None:
            if node not in users:
                pending += [(source, node) for source, _ in node.next_functions]
            users[node].append(user)
    return users
