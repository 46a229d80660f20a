"""Backbones by name: the CIFAR ResNets, and the networks of timm."""

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
from longtail.models.packaged_weights import PACKAGED, packaged_weights
from longtail.models.swin import PositionedPatchEmbed, narrow_swin
from longtail.utils.choices import Interpolation
from longtail.utils.errors import InputError, did_you_mean

Width = Literal["narrow", "full"] | Sequence[int]
Build = Callable[[], nn.Module]

NUM_NARROWED = 2
"""RIDE narrows the last two stages, even if a different number of stages belongs to the experts."""

# Networks of the original RIDE that have no name in timm
_RESNETS: dict[str, dict[str, Any]] = {
    "resnet10": {"block": BasicBlock, "layers": (1, 1, 1, 1)},
    "resnext152_32x4d": {"block": Bottleneck, "layers": (3, 8, 36, 3), "cardinality": 32, "base_width": 4},
}

_WIDTH_KEYWORDS = ("channels", "dims", "embed_dims")
"""Names that constructors in timm use for the widths of the stages"""


def list_backbones() -> list[str]:
    """Returns the names that `create_model` accepts. Nearly all of these networks can be split among experts."""
    return [*resnet_cifar.BLOCKS_PER_STAGE, *_RESNETS, *timm.list_models()]


class InputFormat(NamedTuple):
    """The images that a published network expects."""

    image_size: int = 224
    """Height and width, pixels"""

    interpolation: Interpolation = "bilinear"
    """Of the resize"""

    mean: tuple[float, float, float] = IMAGENET_DEFAULT_MEAN
    """Of red, green and blue, from 0 to 1"""

    std: tuple[float, float, float] = IMAGENET_DEFAULT_STD
    """Standard deviation of red, green and blue, from 0 to 1"""


def input_format(name: str) -> InputFormat:
    """Returns the input format of a network in timm; that of ImageNet if timm does not know it."""
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
    absolute_position: bool = False,
    **options: Any,
) -> Build:
    """Returns a function that builds a network without a classifier, with new weights at each call.

    Args:
        name: one of `list_backbones`, or a timm name with a tag (``resnet50.a1_in1k``).
        width: channels of the last two stages: ``"full"``, ``"narrow"`` (three quarters, as in RIDE's published
            models), or two numbers.
        pretrained: start from timm's published weights, or from the weights of the same network in a file. Stages of
            another width start with random weights.
        image_size: height and width of the images, for networks that need it; None: that of the published network.
        absolute_position: add an absolute position embedding, for Swin.
        options: of the network's constructor in timm, such as ``drop_path_rate``.

    Raises:
        InputError: the name is unknown, the network cannot have this width, or the weights cannot be loaded.
    """
    if isinstance(width, str) and width not in ("narrow", "full"):
        raise InputError(f"width '{width}': must be 'narrow', 'full' or the channels of each of the last two stages")
    if image_size is not None and _needs_image_size(name):
        options["img_size"] = image_size
    if absolute_position:
        options["embed_layer"] = PositionedPatchEmbed
    build = _builder(name, width, options)
    if not pretrained:
        return build
    weights = _pretrained_weights(name, pretrained, options)

    def build_pretrained() -> nn.Module:
        network = build()
        new = network.state_dict()
        if any(value.is_meta for value in new.values()):
            return network  # only the shapes are needed
        fitting = {key: value for key, value in weights.items() if key in new and value.shape == new[key].shape}
        network.load_state_dict(fitting, strict=width == "full")
        return network

    return build_pretrained


def _builder(name: str, width: Width, options: Mapping[str, Any]) -> Build:
    if name in resnet_cifar.BLOCKS_PER_STAGE:
        if options:
            raise InputError(f"{name} does not accept {', '.join(options)}; networks of timm do")
        widths = _widths(name, resnet_cifar.WIDTHS, width)
        return partial(resnet_cifar.CifarResNet, resnet_cifar.BLOCKS_PER_STAGE[name], widths)
    if name in _RESNETS:
        channels = _widths(name, (64, 128, 256, 512), width)
        build = partial(ResNet, **_RESNETS[name], channels=channels, num_classes=0, zero_init_last=False, **options)
        _try_build(build, name, options)
        return build
    if not timm.is_model(name):
        small, large = ", ".join(resnet_cifar.BLOCKS_PER_STAGE), ", ".join(_RESNETS)
        raise InputError(
            f"unknown backbone '{name}'{did_you_mean(name, list_backbones())}; choose {small} for small images, "
            f"{large} or a network of timm"
        )
    build = partial(timm.create_model, name, num_classes=0, **options)
    network = _try_build(build, name, options)
    parameters = inspect.signature(type(network)).parameters
    if "zero_init_last" in parameters:
        build = partial(build, zero_init_last=False)  # in RIDE the last batch norm of a block starts at 1
    if width == "full":
        return build
    stages = [info["num_chs"] for info in network.feature_info]
    if isinstance(network, SwinTransformer):
        widths = _widths(name, stages, width)
        return lambda: narrow_swin(build(), widths)
    keyword = next((word for word in _WIDTH_KEYWORDS if word in parameters), None)
    if keyword is None:
        raise InputError(f"the stages of {name} have fixed widths; set the width (model.width) to 'full'")
    # For ResNets the keyword means the planes of a block; the output of a bottleneck has four times as many channels.
    full = parameters[keyword].default if keyword == "channels" else stages
    build = partial(build, **{keyword: _widths(name, full, width)})
    try:
        with torch.device("meta"):
            build()
    except Exception as error:  # for example, the number of channels is not a multiple of the number of groups
        raise InputError(f"{name} cannot be made narrower ({error}); set the width (model.width) to 'full'") from error
    return build


def _try_build(build: Build, name: str, options: Mapping[str, Any]) -> Any:
    """Returns a network without memory for its weights.

    Raises:
        InputError: the constructor does not know an option, or cannot use its value.
    """
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:  # the type depends on the network
        settings = ", ".join(f"{option}={value}" for option, value in options.items())
        raise InputError(f"{name} cannot be built{' with ' if settings else ''}{settings} ({error})") from error


def _pretrained_weights(name: str, source: bool | str | Path, options: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Returns the weights of the network in full width, without its classifier."""
    if not timm.is_model(name):
        raise InputError(f"there are no pretrained weights of {name}, which is not a network of timm")
    if source is not True and not Path(str(source)).is_file():
        raise InputError(f"pretrained weights '{source}': no such file")
    weights = packaged_weights(name) if source is True and name in PACKAGED else None
    try:
        if source is not True:
            # Read here, because for some networks timm expects a file of another format.
            weights = _read_weights(str(source))
        local = {} if weights is None else {"pretrained_cfg_overlay": {"state_dict": weights}}
        network = timm.create_model(name, pretrained=True, num_classes=0, **local, **options)
    except Exception as error:  # the type depends on the hub, the file and the network
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        hint = ""
        if source is True:
            offline = " and ".join(PACKAGED)
            hint = f"; without internet access, use a file of weights instead of true, or the backbone {offline}"
        raise InputError(f"pretrained weights of {name} cannot be loaded ({reason}){hint}") from error
    return network.state_dict()  # type: ignore[no-any-return]


def _read_weights(path: str) -> Mapping[str, Tensor]:
    try:
        weights: Mapping[str, Tensor] = timm.models.load_state_dict(path, weights_only=True)
    except Exception as error:  # whatever the bytes lead to
        raise InputError(f"'{path}' is not a file of weights, as torch.save or safetensors write them") from error
    return weights


def _needs_image_size(name: str) -> bool:
    """Whether the embeddings or windows of a network depend on the size of the images."""
    if not timm.is_model(name):
        return False
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    return hasattr(getattr(network, "patch_embed", None), "img_size")


def _widths(name: str, full: Sequence[int], width: Width) -> tuple[int, ...]:
    """Returns the widths of all stages."""
    first, last = tuple(full[:-NUM_NARROWED]), tuple(full[-NUM_NARROWED:])
    if isinstance(width, str):
        return first + (last if width == "full" else tuple(channels * 3 // 4 for channels in last))
    if len(width) != NUM_NARROWED:
        raise InputError(
            f"width {list(width)} of {name}: must be {NUM_NARROWED} numbers, for its last stages {list(last)}"
        )
    return first + tuple(width)
