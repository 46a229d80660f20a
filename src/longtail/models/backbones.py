"""The networks that can be cut: the CIFAR ResNets, and every hierarchical network and plain ViT of timm."""

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from longtail.errors import InputError
from longtail.models import cifar
from longtail.models.swin import narrow_swin

Width = Literal["narrow", "full"] | Sequence[int]
Build = Callable[[], nn.Module]

NUM_NARROWED = 2
"""RIDE narrows the last two stages, whether or not both belong to the experts."""

# Networks of the original RIDE that timm has no name for.
_RESNETS: dict[str, dict[str, Any]] = {
    "resnet10": {"block": BasicBlock, "layers": (1, 1, 1, 1)},
    "resnext152_32x4d": {"block": Bottleneck, "layers": (3, 8, 36, 3), "cardinality": 32, "base_width": 4},
}

_WIDTH_KEYWORDS = ("channels", "dims", "embed_dims")
"""How the constructors of timm's networks call the widths of their stages."""


def backbone_names() -> list[str]:
    """The names that `create_model` takes: all of these can be built, nearly all can be cut."""
    return [*cifar.BLOCKS_PER_STAGE, *_RESNETS, *timm.list_models()]


def backbone(name: str, width: Width = "full", **options: Any) -> Build:
    """Returns a function that builds the named network without a classifier, freshly initialised at each call.

    Args:
        name: one of `backbone_names`, or a timm name with a tag (``resnet50.a1_in1k``).
        width: channels of the last two stages: ``"full"``, ``"narrow"`` (three quarters of the filters, as RIDE's
            published models) or the numbers themselves.
        options: of the network's constructor in timm, such as ``drop_path_rate`` or ``img_size``.

    Raises:
        InputError: unknown name, or widths that the network cannot have.
    """
    if isinstance(width, str) and width not in ("narrow", "full"):
        raise InputError(f"width '{width}': 'narrow', 'full' or the channels of each of the last two stages")
    if name in cifar.BLOCKS_PER_STAGE:
        widths = _widths(name, cifar.WIDTHS, width)
        return partial(cifar.CifarResNet, cifar.BLOCKS_PER_STAGE[name], widths)
    if name in _RESNETS:
        channels = _widths(name, (64, 128, 256, 512), width)
        return partial(ResNet, **_RESNETS[name], channels=channels, num_classes=0, zero_init_last=False, **options)
    if not timm.is_model(name):
        near = get_close_matches(name, backbone_names(), n=1)
        raise InputError(
            f"unknown backbone '{name}'{f'; did you mean {near[0]!r}?' if near else ''} "
            f"There are {', '.join(cifar.BLOCKS_PER_STAGE)} for small images, and the networks of timm"
        )
    build = partial(timm.create_model, name, num_classes=0, **options)
    with torch.device("meta"):
        network = build()
    parameters = inspect.signature(type(network)).parameters
    if "zero_init_last" in parameters:
        build = partial(build, zero_init_last=False)  # RIDE lets the last batch norm of a block start at 1
    if width == "full":
        return build
    stages = [info["num_chs"] for info in network.feature_info]
    if isinstance(network, SwinTransformer):
        widths = _widths(name, stages, width)
        return lambda: narrow_swin(build(), widths)
    keyword = next((word for word in _WIDTH_KEYWORDS if word in parameters), None)
    if keyword is None or len(set(stages)) < len(stages):
        raise InputError(f"the stages of {name} have fixed widths; set the width (model.width) to 'full'")
    # ResNets are named by the planes of a block, of which a bottleneck's output has four times as many.
    full = parameters[keyword].default if keyword == "channels" else stages
    return partial(build, **{keyword: _widths(name, full, width)})


def _widths(name: str, full: Sequence[int], width: Width) -> tuple[int, ...]:
    shared, own = tuple(full[:-NUM_NARROWED]), tuple(full[-NUM_NARROWED:])
    if isinstance(width, str):
        return shared + (own if width == "full" else tuple(channels * 3 // 4 for channels in own))
    if len(width) != NUM_NARROWED:
        raise InputError(f"width {list(width)} of {name}: {NUM_NARROWED} numbers, for its last stages, {list(own)}")
    return shared + tuple(width)
