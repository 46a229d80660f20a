"""Splits a network into a trunk that all experts share, a branch per expert, and possibly a shared neck."""

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
    """A split network: ``neck(branch(trunk(images)))`` are pooled features (B, D)."""

    trunk: nn.Module
    branches: list[nn.Module]
    neck: nn.Module
    """Shared last part of all branches; `Identity` if there is none"""

    num_features: int
    """D"""


def split_backbone(
    build: Build,
    num_branches: int,
    expert_stages: int | None = None,
    image_size: int | None = None,
    experts_from: str | None = None,
) -> SplitModel:
    """Splits a network so that ``neck(branch(trunk(x))) == network(x)``.

    Each part runs the network's own code and keeps its parameter names; modules of the other parts are replaced by
    `Identity`. Each branch is a new network, so that experts start with different weights.

    Args:
        build: builds the network, without a classifier.
        num_branches: experts E.
        expert_stages: number of last stages that each expert has for itself; 2 by default, as in RIDE. For plain
            vision transformers, the number of blocks; a quarter of them by default.
        image_size: height and width of the images; None: that of the published network.
        experts_from: name of the first module that each expert has for itself, such as ``blocks.6``, instead of a
            number of stages.

    Raises:
        InputError: the network cannot be split, has too few stages, or does not accept images of this size.
    """
    with torch.device("meta"):  # a trial without computation
        network = build()
        size = _input_size(network) if image_size is None else (3, image_size, image_size)
        images = torch.empty(2, *size)  # batch norm in training mode needs two
        try:
            network(images)
        except Exception as error:  # the type depends on the network
            raise InputError(
                f"{type(network).__name__} does not accept images of {size[1]} x {size[2]} pixels"
            ) from error
        try:
            trunk, (branch,), neck, num_features = _split(build, 1, expert_stages, experts_from)
            works = neck(branch(trunk(images))).shape == (2, num_features)
        except InputError:
            raise
        except Exception:  # a network without some of its modules can fail in any way
            works = False
    if not works:
        raise InputError(
            f"{type(network).__name__} cannot be split: its stages do not simply follow one another. Networks that can "
            "be split include ResNet, ConvNeXt, Swin, RegNet, EfficientNet, MobileNet, DenseNet, ViT, DeiT and EVA"
        )
    return _split(build, num_branches, expert_stages, experts_from)


def _split(build: Build, num_branches: int, expert_stages: int | None, experts_from: str | None) -> SplitModel:
    network = build()
    if isinstance(network, VisionTransformer | Eva):
        if experts_from is not None:
            raise InputError(f"experts_from is '{experts_from}'; plain vision transformers have expert_stages instead")
        return _split_blocks(network, build, num_branches, expert_stages)
    return _split_stages(network, build, num_branches, 2 if expert_stages is None else expert_stages, experts_from)


def _split_stages(
    network: nn.Module, build: Build, num_branches: int, expert_stages: int, experts_from: str | None
) -> SplitModel:
    stages = [info["module"] for info in network.feature_info]  # type: ignore[union-attr]
    _check_number(network, "stages", expert_stages, len(stages))
    last_shared = stages[-expert_stages - 1]
    swin = isinstance(network, SwinTransformer)
    if swin:  # in RIDE-Swin the experts share the down-sampling into their first stage, and the final norm
        last_shared = f"{stages[-expert_stages]}.downsample"
    units = list(_units(network, [*stages, last_shared, experts_from or ""]))
    end = units.index(last_shared) + 1
    if experts_from is not None:
        if experts_from not in units[1:]:
            raise InputError(
                f"experts_from is '{experts_from}', which is no module of {type(network).__name__} after the first; "
                f"null leaves it to expert_stages; its modules are {', '.join(units)}"
            )
        end = units.index(experts_from)
    start_of_neck = units.index("norm") if swin else len(units)
    trunk, branch, neck = units[:end], units[end:start_of_neck], units[start_of_neck:]
    return SplitModel(
        _without_pooling(_remove(network, branch + neck)),
        [_remove(build(), trunk + neck) for _ in range(num_branches)],
        _remove(build(), trunk + branch) if neck else Identity(),
        _num_features(network),
    )


def _units(module: nn.Module, marks: Sequence[str], prefix: str = "") -> Iterator[str]:
    """Yields names of modules in the order in which they run; the children of a container that contains a mark."""
    for name, child in module.named_children():
        full_name = f"{prefix}{name}"
        if any(mark.startswith(f"{full_name}.") for mark in marks):
            yield from _units(child, marks, f"{full_name}.")
        else:
            yield full_name


def _split_blocks(network: nn.Module, build: Build, num_branches: int, expert_blocks: int | None) -> SplitModel:
    """Splits a plain vision transformer between two of its blocks."""
    depth = len(network.blocks)  # type: ignore[arg-type]
    expert_blocks = max(depth // 4, 1) if expert_blocks is None else expert_blocks
    _check_number(network, "blocks", expert_blocks, depth)
    if getattr(network, "rope_mixed", False):
        raise InputError("vision transformers with mixed rotary embeddings cannot be split; those with fixed ones can")
    num_shared = depth - expert_blocks
    children = [name for name, _ in network.named_children()]
    after = children[children.index("blocks") + 1 :]
    num_features = _num_features(network)
    branches: list[nn.Module] = [_TokenBranch(build(), num_shared) for _ in range(num_branches)]
    trunk = _without_pooling(_remove(network, [name for name in after if name != "rope"]))
    trunk.blocks = trunk.blocks[:num_shared]  # type: ignore[index]
    return SplitModel(trunk, branches, Identity(), num_features)


class _TokenBranch(nn.Module):
    """The last blocks of a vision transformer: tokens (B, N, D) -> pooled features (B, D)."""

    def __init__(self, network: nn.Module, num_shared: int):
        super().__init__()
        children = [name for name, _ in network.named_children()]
        self.blocks = network.blocks[num_shared:]  # type: ignore[index]
        self.rope = getattr(network, "rope", None)
        # Only the modules after the blocks are used.
        before = children[: children.index("blocks") + 1]
        self.network = _remove(network, [name for name in [*before, "rope"] if name in children])
        for name in dict(network.named_parameters(recurse=False)):
            setattr(network, name, None)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, D)."""
        options = {} if self.rope is None else {"rope": self._rotary_embedding(tokens)}
        for block in self.blocks:
            tokens = block(tokens, **options)
        features: Tensor = self.network.forward_head(self.network.norm(tokens))  # type: ignore[operator]
        return features

    def _rotary_embedding(self, tokens: Tensor) -> Tensor:
        """Returns the embedding that EVA and similar networks pass to each block, for a square grid of patches."""
        side = isqrt(tokens.shape[1] - self.network.num_prefix_tokens)  # type: ignore[operator]
        dynamic = self.network.dynamic_img_size
        embedding: Tensor = self.rope.get_embed(shape=(side, side)) if dynamic else self.rope.get_embed()  # type: ignore
        return embedding


class Identity(nn.Identity):
    """Returns its first argument and ignores all others."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Returns the input."""
        return input


def _remove(network: nn.Module, names: Sequence[str]) -> nn.Module:
    for name in names:
        network.set_submodule(name, Identity())
    return network


def _without_pooling(network: nn.Module) -> nn.Module:
    network.forward = network.forward_features  # type: ignore[method-assign,assignment]
    return network


def _check_number(network: nn.Module, kind: str, number: int, total: int) -> None:
    if not 1 <= number < total:
        name = type(network).__name__
        raise InputError(f"expert_stages is {number}; {name} has {total} {kind}, so it must be from 1 to {total - 1}")


def _input_size(network: nn.Module) -> tuple[int, ...]:
    if size := getattr(getattr(network, "patch_embed", None), "img_size", None):
        return (3, *size)  # may differ from that of the published network
    published: Any = getattr(network, "pretrained_cfg", None) or {}
    return tuple(published.get("input_size", (3, 224, 224)))


def _num_features(network: nn.Module) -> int:
    return int(getattr(network, "head_hidden_size", None) or network.num_features)  # type: ignore[arg-type]
