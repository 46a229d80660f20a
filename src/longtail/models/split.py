"""The cut: one network becomes a trunk that all experts share, a branch for each, and perhaps a shared neck."""

from collections.abc import Iterator, Sequence
from math import isqrt
from typing import Any, NamedTuple

import torch
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from longtail.models.backbones import Build
from longtail.utils.errors import InputError


class SplitModel(NamedTuple):
    """What a network is cut into: ``neck(branch(trunk(images)))`` are the pooled features (B, D)."""

    trunk: nn.Module
    branches: list[nn.Module]
    neck: nn.Module
    """Shared end of all branches; passes everything on where there is none."""
    num_features: int
    """D"""


def split_backbone(
    build: Build, num_branches: int, expert_stages: int | None = None, image_size: int | None = None
) -> SplitModel:
    """Cuts a network so that ``neck(branch(trunk(x))) == network(x)``.

    The parts keep the network's own code and parameter names; modules that belong to another part are blanked. Each
    branch comes from a fresh build, so that experts start out different.

    Args:
        build: makes the network, without a classifier.
        num_branches: experts E.
        expert_stages: how many of the last stages belong to each expert, 2 by default (RIDE's choice). Of plain
            vision transformers, blocks, by default a quarter of them.
        image_size: height and width of the images; what the network is made for by default.

    Raises:
        InputError: the network is not one that can be cut, has too few stages, or does not take images of this size.
    """
    with torch.device("meta"):  # tried without computing anything
        network = build()
        size = _input_size(network) if image_size is None else (3, image_size, image_size)
        images = torch.empty(2, *size)  # two, as batch norm in training needs
        try:
            network(images)
        except Exception as error:  # each network has its own way to fail
            raise InputError(
                f"{type(network).__name__} does not take images of {size[1]} x {size[2]} pixels"
            ) from error
        try:
            trunk, (branch,), neck, num_features = _cut(build, 1, expert_stages)
            whole = neck(branch(trunk(images))).shape == (2, num_features)
        except InputError:
            raise
        except Exception:  # a blanked module can fail in any way
            whole = False
    if not whole:
        raise InputError(
            f"{type(network).__name__} cannot be cut: its stages do not simply follow one another. Networks that can "
            "be cut are ResNet, ConvNeXt, Swin, RegNet, EfficientNet, MobileNet, DenseNet, ViT, DeiT, EVA and more"
        )
    return _cut(build, num_branches, expert_stages)


def _cut(build: Build, num_branches: int, expert_stages: int | None) -> SplitModel:
    network = build()
    if isinstance(network, VisionTransformer | Eva):
        return _cut_blocks(network, build, num_branches, expert_stages)
    return _cut_stages(network, build, num_branches, 2 if expert_stages is None else expert_stages)


def _cut_stages(network: nn.Module, build: Build, num_branches: int, expert_stages: int) -> SplitModel:
    stages = [info["module"] for info in network.feature_info]  # type: ignore[union-attr]
    _check_number(network, "stages", expert_stages, len(stages))
    last_shared = stages[-expert_stages - 1]
    swin = isinstance(network, SwinTransformer)
    if swin:  # RIDE-Swin shares the down-sampling between trunk and experts, and the final norm
        last_shared = f"{stages[-expert_stages]}.downsample"
    units = list(_units(network, [*stages, last_shared]))
    end = units.index(last_shared) + 1
    start_of_neck = units.index("norm") if swin else len(units)
    trunk, branch, neck = units[:end], units[end:start_of_neck], units[start_of_neck:]
    return SplitModel(
        _features_only(_blank(network, branch + neck)),
        [_blank(build(), trunk + neck) for _ in range(num_branches)],
        _blank(build(), trunk + branch) if neck else Identity(),
        _num_features(network),
    )


def _units(module: nn.Module, marks: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Names of the modules in the order they run, containers opened where a mark lies inside."""
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        if any(mark.startswith(f"{full}.") for mark in marks):
            yield from _units(child, marks, f"{full}.")
        else:
            yield full


def _cut_blocks(network: nn.Module, build: Build, num_branches: int, expert_blocks: int | None) -> SplitModel:
    """The cut of a plain vision transformer, between two of its blocks, all of which have the same width."""
    depth = len(network.blocks)  # type: ignore[arg-type]
    own = max(depth // 4, 1) if expert_blocks is None else expert_blocks
    _check_number(network, "blocks", own, depth)
    if getattr(network, "rope_mixed", False):
        raise InputError("vision transformers with mixed rotary embeddings cannot be cut; those with fixed ones can")
    children = [name for name, _ in network.named_children()]
    after = children[children.index("blocks") + 1 :]
    num_features = _num_features(network)
    branches: list[nn.Module] = [_TokenBranch(build(), depth - own) for _ in range(num_branches)]
    trunk = _features_only(_blank(network, [name for name in after if name != "rope"]))
    trunk.blocks = trunk.blocks[: depth - own]  # type: ignore[index]
    return SplitModel(trunk, branches, Identity(), num_features)


class _TokenBranch(nn.Module):
    """The last blocks of a vision transformer: tokens (B, N, D) -> pooled features (B, D)."""

    def __init__(self, network: nn.Module, num_shared: int):
        super().__init__()
        children = [name for name, _ in network.named_children()]
        self.blocks = network.blocks[num_shared:]  # type: ignore[index]
        self.rope = getattr(network, "rope", None)
        # What follows the blocks stays the network's own code; blocks and everything before them is dropped.
        before = children[: children.index("blocks") + 1]
        self.network = _blank(network, [name for name in [*before, "rope"] if name in children])
        for name, parameter in list(network.named_parameters(recurse=False)):
            if parameter is not None:
                setattr(network, name, None)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        options = {} if self.rope is None else {"rope": self._places(tokens)}
        for block in self.blocks:
            tokens = block(tokens, **options)
        features: Tensor = self.network.forward_head(self.network.norm(tokens))  # type: ignore[operator]
        return features

    def _places(self, tokens: Tensor) -> Tensor:
        """What EVA and its kin turn queries and keys by in every block, for a square grid of patches."""
        side = isqrt(tokens.shape[1] - self.network.num_prefix_tokens)  # type: ignore[operator]
        dynamic = self.network.dynamic_img_size
        embedding: Tensor = self.rope.get_embed(shape=(side, side)) if dynamic else self.rope.get_embed()  # type: ignore
        return embedding


class Identity(nn.Identity):
    """Hands its first input on, whatever else it is called with."""

    def forward(self, input: Tensor, *others: Any, **options: Any) -> Tensor:
        """The same tensor."""
        return input


def _blank(network: nn.Module, names: Sequence[str]) -> nn.Module:
    for name in names:
        network.set_submodule(name, Identity())
    return network


def _features_only(network: nn.Module) -> nn.Module:
    """A network without the pooling that `forward` ends with, which a trunk's feature maps are not to go through."""
    network.forward = network.forward_features  # type: ignore[method-assign,assignment]
    return network


def _check_number(network: nn.Module, kind: str, own: int, total: int) -> None:
    if not 1 <= own < total:
        name = type(network).__name__
        raise InputError(f"expert_stages is {own}; {name} has {total} {kind}, so it must be from 1 to {total - 1}")


def _input_size(network: nn.Module) -> tuple[int, ...]:
    if size := getattr(getattr(network, "patch_embed", None), "img_size", None):
        return (3, *size)  # chosen by the caller
    settings: Any = getattr(network, "pretrained_cfg", None) or {}
    return tuple(settings.get("input_size", (3, 224, 224)))


def _num_features(network: nn.Module) -> int:
    return int(getattr(network, "head_hidden_size", None) or network.num_features)  # type: ignore[arg-type]
