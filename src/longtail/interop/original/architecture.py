"""The network in a checkpoint of the original code: its architecture from names and shapes, and the network itself."""

import re
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any, Literal

import timm
from torch import Tensor

from longtail.interop.original.names import convert_state_dict
from longtail.models import resnet_cifar
from longtail.models.backbones import input_format
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.utils.errors import InputError
from longtail.utils.format import shortened_list

SCALE = 30.0
"""Factor of cosines in all recipes of the original; RIDE applies it in the model, RIDE-Swin in the loss"""

# (bottleneck, width of a group, blocks in each stage) -> name. Networks without groups have width 64.
RESNETS: dict[tuple[bool, int, tuple[int, ...]], str] = {
    (False, 64, (1, 1, 1, 1)): "resnet10",
    (False, 64, (2, 2, 2, 2)): "resnet18",
    (False, 64, (3, 4, 6, 3)): "resnet34",
    (True, 64, (3, 4, 6, 3)): "resnet50",
    (True, 64, (3, 4, 23, 3)): "resnet101",
    (True, 64, (3, 8, 36, 3)): "resnet152",
    (True, 4, (3, 4, 6, 3)): "resnext50_32x4d",
    (True, 4, (3, 4, 23, 3)): "resnext101_32x4d",
    (True, 4, (3, 8, 36, 3)): "resnext152_32x4d",
}

# (channels of the first stage, blocks in each stage) -> size. Other depths are options of the size with these channels.
SWINS: dict[tuple[int, tuple[int, ...]], str] = {
    (96, (2, 2, 6, 2)): "tiny",
    (96, (2, 2, 18, 2)): "small",
    (128, (2, 2, 18, 2)): "base",
    (192, (2, 2, 18, 2)): "large",
}

Shapes = Mapping[str, Sequence[int]]
Network = tuple[str, dict[str, Any]]
"""Name of a network, and options of its constructor in timm"""

Stages = tuple[Network, Sequence[int], list[int]]
"""A network, full widths of its last two stages, and their widths in the checkpoint"""

MASK = re.compile(r".*\blayers\.(\d)\..*\battn_mask")
"""Mask of the shifted windows in a stage of the original Swin: (windows, patches of a window, the same)"""


def load_original(original: Mapping[str, Tensor], scale: float = SCALE) -> tuple[MultiExpert, dict[str, Any]]:
    """Returns the network of an original checkpoint with its weights, and the arguments of `create_model`.

    Args:
        original: the tensors by original name.
        scale: of cosines, which the weights do not tell.

    Raises:
        InputError: names or shapes do not fit any network of the original.
    """
    architecture, weights = infer_architecture(original) | {"scale": scale}, convert_state_dict(original)
    with skip_init():
        model = create_model(**architecture)
    if problems := _differences(_shapes(model.state_dict()), _shapes(weights)):
        experts = architecture["num_experts"]
        raise InputError(f"does not fit {architecture['name']} with {experts} expert(s): {shortened_list(problems)}")
    model.load_state_dict(weights, strict=True)
    return model, architecture


def infer_architecture(original: Mapping[str, Tensor]) -> dict[str, Any]:
    """Returns the arguments of `create_model` for the network of an original checkpoint.

    Args:
        original: the tensors by original name; only names and shapes are used.

    Raises:
        InputError: the original has no such network.
    """
    shapes = _shapes(convert_state_dict(original))
    # The full network of the first expert, under timm's names.
    first = {re.sub(r"^(trunk|branches\.0|neck)\.", "", name): shape for name, shape in shapes.items()}
    try:
        (name, options), full, widths = (_swin if "patch_embed.proj.weight" in first else _resnet)(first)
        num_classes, _ = shapes["heads.0.weight"]
    except InputError:
        raise
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"incomplete checkpoint: {error} is missing or has another shape") from error
    branch = {match[1] for key in shapes if (match := re.match(r"branches\.0\.(layer\d|layers\.\d\.blocks)\.", key))}
    architecture = {
        "name": name,
        **options,
        "num_classes": num_classes,
        "num_experts": sum(re.fullmatch(r"heads\.\d+\.weight", key) is not None for key in shapes),
        "width": _width(full, widths),
        "head": "linear" if "heads.0.bias" in shapes else "cosine",
        "scale": SCALE,
        "expert_stages": len(branch),
    }
    # Patches of 4 x 4 pixels tell the size of the images.
    if position := shapes.get("trunk.patch_embed.absolute_pos_embed"):
        architecture |= {"absolute_position": True, "image_size": 4 * isqrt(position[1])}
    elif (size := _swin_image_size(original)) not in (None, input_format(name).image_size):
        architecture["image_size"] = size
    hidden, output = shapes.get("router.hidden.0.weight"), shapes.get("router.output.0.weight")
    if hidden and output and len(output) == 2:
        # The output layer takes the largest logits and the hidden units.
        architecture["router"] = {
            "top_choices": output[1] - hidden[0],
            "hidden": hidden[0],
            "shared": "router.output.1.weight" not in shapes,  # the same for two experts, which have one layer
        }
    return architecture


def _resnet(shapes: Shapes) -> Stages:
    depths = _depths(shapes, r"layer(\d)\.(\d+)\.conv1\.weight")
    if len(depths) == 3:
        names = {(blocks,) * 3: name for name, blocks in resnet_cifar.BLOCKS_PER_STAGE.items()}
        if depths not in names:
            raise _unknown(f"{depths} blocks in its stages")
        return (
            (names[depths], {}),
            resnet_cifar.WIDTHS[-2:],
            [shapes[f"layer{stage}.0.conv1.weight"][0] for stage in (2, 3)],
        )
    bottleneck = "layer1.0.conv3.weight" in shapes
    key = (bottleneck, shapes["layer1.0.conv2.weight"][1] if depths else 0, depths)
    if key not in RESNETS:
        raise _unknown(f"{depths} blocks in its stages and groups of {key[1]} channels")
    # timm names a bottleneck's width by its planes; its output has four times as many channels.
    last, expansion = ("conv3", 4) if bottleneck else ("conv2", 1)
    return (RESNETS[key], {}), (256, 512), [shapes[f"layer{stage}.0.{last}.weight"][0] // expansion for stage in (3, 4)]


def _swin(shapes: Shapes) -> Stages:
    depths = _depths(shapes, r"layers\.(\d)\.blocks\.(\d+)\.norm1\.weight")
    channels = shapes["patch_embed.proj.weight"][0]
    # The table has an entry for each of (2 window - 1)^2 relative positions.
    window = (isqrt(shapes["layers.0.blocks.0.attn.relative_position_bias_table"][0]) + 1) // 2
    network = swin_network(channels, depths, window)
    if network is None:
        raise _unknown(f"{len(depths)} stages and {channels} channels")
    return (
        network,
        (4 * channels, 8 * channels),
        [shapes[f"layers.{stage}.blocks.0.norm1.weight"][0] for stage in (2, 3)],
    )


def swin_network(channels: int, depths: tuple[int, ...], window: int) -> Network | None:
    """Returns the Swin of timm with these channels, and options for what differs from it; None if there is none.

    Args:
        channels: of the first stage.
        depths: number of blocks in each stage.
        window: height and width of the attention windows in patches.
    """
    sizes = [size for (width, blocks), size in SWINS.items() if width == channels and len(blocks) == len(depths)]
    if not sizes:
        return None
    size, options = SWINS.get((channels, depths)), dict[str, Any]()
    if size is None:
        size, options = sizes[0], {"depths": list(depths)}
    name = f"swin_{size}_patch4_window{window}_{32 * window}"
    if timm.is_model(name):
        return name, options
    return f"swin_{size}_patch4_window7_224", options | {"window_size": window}


def _swin_image_size(original: Mapping[str, Tensor]) -> int | None:
    """Returns height and width of the images that masks of shifted windows are for; None if there are no masks."""
    for name, mask in original.items():
        if match := MASK.fullmatch(name):
            return 4 * (1 << int(match[1])) * isqrt(mask.shape[0] * mask.shape[1])
    return None


def _depths(shapes: Shapes, pattern: str) -> tuple[int, ...]:
    """Returns the number of blocks in each stage."""
    stages = [match[1] for name in shapes if (match := re.fullmatch(pattern, name))]
    return tuple(stages.count(stage) for stage in sorted(set(stages)))


def _width(full: Sequence[int], widths: list[int]) -> Literal["narrow", "full"] | list[int]:
    if widths == list(full):
        return "full"
    return "narrow" if widths == [channels * 3 // 4 for channels in full] else widths


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _differences(expected: Shapes, found: Shapes) -> list[str]:
    missing = [f"{name} is missing" for name in expected if name not in found]
    unknown = [f"{name} is not part of it" for name in found if name not in expected]
    both = [(name, found[name], shape) for name, shape in expected.items() if name in found]
    return missing + unknown + [f"{name} is {ours} and not {shape}" for name, ours, shape in both if ours != shape]


def _unknown(description: str) -> InputError:
    return InputError(
        f"no network of the original code has {description}; known networks: {', '.join(RESNETS.values())}, "
        f"swin {', '.join(SWINS.values())}, {', '.join(resnet_cifar.BLOCKS_PER_STAGE)}"
    )
