"""The networks that can be cut: the CIFAR ResNets, and every hierarchical network and plain ViT of timm."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from longtail.models import resnet_cifar
from longtail.models.swin import narrow_swin
from longtail.utils.errors import InputError, did_you_mean

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


def list_backbones() -> list[str]:
    """The names that `create_model` takes: all of these can be built, nearly all can be cut."""
    return [*resnet_cifar.BLOCKS_PER_STAGE, *_RESNETS, *timm.list_models()]


class InputFormat(NamedTuple):
    """The images a network was published for."""

    image_size: int = 224
    """Height and width, pixels"""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How they were resized"""
    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    """of red, green and blue, from 0 to 1"""
    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    """likewise"""


def input_format(name: str) -> InputFormat:
    """What timm says of a network's images; ImageNet's usual format where it does not."""
    published = timm.models.get_pretrained_cfg(name) if timm.is_model(name) else None
    if published is None:
        return InputFormat()
    interpolation: Any = published.interpolation if published.interpolation == "bicubic" else "bilinear"
    return InputFormat(published.input_size[-1], interpolation, published.mean, published.std)


def backbone(
    name: str,
    width: Width = "full",
    pretrained: bool | str | Path = False,
    image_size: int | None = None,
    **options: Any,
) -> Build:
    """Returns a function that builds the named network without a classifier, freshly initialised at each call.

    Args:
        name: one of `list_backbones`, or a timm name with a tag (``resnet50.a1_in1k``).
        width: channels of the last two stages: ``"full"``, ``"narrow"`` (three quarters of the filters, as RIDE's
            published models) or the numbers themselves.
        pretrained: start from timm's published weights, or from those in a file of the same network; stages of another
            width start afresh.
        image_size: height and width of the images, for networks that must know it; their own by default.
        options: of the network's constructor in timm, such as ``drop_path_rate``.

    Raises:
        InputError: unknown name, widths that the network cannot have, or weights that cannot be loaded.
    """
    if isinstance(width, str) and width not in ("narrow", "full"):
        raise InputError(f"width '{width}': 'narrow', 'full' or the channels of each of the last two stages")
    if image_size is not None and _must_know_image_size(name):
        options["img_size"] = image_size
    build = _builder(name, width, options)
    if not pretrained:
        return build
    weights = _pretrained(name, pretrained, options)

    def load() -> nn.Module:
        network = build()
        own = network.state_dict()
        if any(value.is_meta for value in own.values()):
            return network  # only its shapes are wanted
        fitting = {key: value for key, value in weights.items() if key in own and value.shape == own[key].shape}
        if width == "full":
            assert fitting.keys() == own.keys()
        network.load_state_dict(fitting, strict=False)
        return network

    return load


def _builder(name: str, width: Width, options: Mapping[str, Any]) -> Build:
    if name in resnet_cifar.BLOCKS_PER_STAGE:
        if options:
            raise InputError(f"{name} does not take {', '.join(options)}; networks of timm do")
        widths = _widths(name, resnet_cifar.WIDTHS, width)
        return partial(resnet_cifar.CifarResNet, resnet_cifar.BLOCKS_PER_STAGE[name], widths)
    if name in _RESNETS:
        channels = _widths(name, (64, 128, 256, 512), width)
        return partial(ResNet, **_RESNETS[name], channels=channels, num_classes=0, zero_init_last=False, **options)
    if not timm.is_model(name):
        known = f"{', '.join(resnet_cifar.BLOCKS_PER_STAGE)} for small images, {', '.join(_RESNETS)} and the networks of timm"
        raise InputError(f"unknown backbone '{name}'{did_you_mean(name, list_backbones())}; there are {known}")
    build = partial(timm.create_model, name, num_classes=0, **options)
    try:
        with torch.device("meta"):
            network = build()
    except TypeError as error:  # an option that the network's constructor does not know
        raise InputError(f"{name}: {error}") from error
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
    if keyword is None:
        raise InputError(f"the stages of {name} have fixed widths; set the width (model.width) to 'full'")
    # ResNets take the planes of a block, of which a bottleneck's output has four times as many.
    full = parameters[keyword].default if keyword == "channels" else stages
    build = partial(build, **{keyword: _widths(name, full, width)})
    try:
        with torch.device("meta"):
            build()
    except Exception as error:  # the width may be given already, or a group of channels not be a whole number
        raise InputError(f"{name} cannot be made narrower ({error}); set the width (model.width) to 'full'") from error
    return build


def _pretrained(name: str, where: bool | str | Path, options: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The weights of the full network without its classifier."""
    if not timm.is_model(name):
        raise InputError(f"there are no pretrained weights of {name}, which is not a network of timm")
    local: dict[str, Any] = {}
    if where is not True and not Path(str(where)).is_file():
        raise InputError(f"pretrained weights '{where}': no such file")
    try:
        if where is not True:
            # Read here, because earlier versions of timm would run what a pickle asks for.
            weights = timm.models.load_state_dict(str(where), weights_only=True)
            local = {"pretrained_cfg_overlay": {"state_dict": weights}}
        network = timm.create_model(name, pretrained=True, num_classes=0, **local, **options)
    except Exception as error:  # the hub, the file and the network each have their own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = "" if where is not True else "; without a network, give a file of weights instead of true"
        raise InputError(f"pretrained weights of {name} cannot be loaded ({reason}){hint}") from error
    return network.state_dict()  # type: ignore[no-any-return]


def _must_know_image_size(name: str) -> bool:
    """Whether a network's embeddings or windows are made for one size of images."""
    if not timm.is_model(name):
        return False
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    return hasattr(getattr(network, "patch_embed", None), "img_size")


def _widths(name: str, full: Sequence[int], width: Width) -> tuple[int, ...]:
    shared, own = tuple(full[:-NUM_NARROWED]), tuple(full[-NUM_NARROWED:])
    if isinstance(width, str):
        return shared + (own if width == "full" else tuple(channels * 3 // 4 for channels in own))
    if len(width) != NUM_NARROWED:
        raise InputError(f"width {list(width)} of {name}: {NUM_NARROWED} numbers, for its last stages, {list(own)}")
    return shared + tuple(width)
