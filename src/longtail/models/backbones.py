"""Cuts a network into a shared trunk and one branch per expert, and knows RIDE's narrowed widths."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Literal

from torch import nn

from longtail.errors import InputError, did_you_mean
from longtail.models import cifar

Width = Literal["narrow", "full"] | Sequence[int]


def backbone_names() -> list[str]:
    """The names that `create_model` takes."""
    return list(cifar.BLOCKS_PER_STAGE)


def backbone(name: str, width: Width = "full") -> Callable[[], nn.Module]:
    """Returns a function that builds the named network, freshly initialised at each call.

    Args:
        name: one of `backbone_names`.
        width: channels of the stages that belong to an expert: ``"full"``, ``"narrow"`` (three quarters of the
            filters, as RIDE's published models) or the numbers themselves.

    Raises:
        InputError: unknown name, or widths that the network cannot have.
    """
    if name not in cifar.BLOCKS_PER_STAGE:
        hint = did_you_mean(name, backbone_names())
        raise InputError(f"unknown backbone '{name}'{hint}; there are {', '.join(backbone_names())}")
    stem, *own = cifar.WIDTHS
    if width == "narrow":
        own = [channels * 3 // 4 for channels in own]
    elif isinstance(width, str) and width != "full":
        raise InputError(f"width '{width}': 'narrow', 'full' or the channels of each stage of an expert")
    elif width != "full":
        if len(width) != len(own):
            raise InputError(f"width {list(width)}: an expert of {name} has {len(own)} stages, so {len(own)} numbers")
        own = list(width)
    return partial(cifar.CifarResNet, cifar.BLOCKS_PER_STAGE[name], (stem, *own))


def cut(build: Callable[[], nn.Module], num_branches: int, num_shared: int = 2) -> tuple[nn.Module, nn.ModuleList]:
    """Cuts a network after its first ``num_shared`` stages so that ``branch(trunk(x)) == network(x)``.

    Trunk and branches keep the network's own code and parameter names; the modules that belong to the other
    part are blanked. Each branch comes from a fresh build, so that experts start out different.
    """
    trunk = build()
    stages: Sequence[Sequence[str]] = trunk.stages  # type: ignore[assignment]
    head, tail = list(chain(*stages[:num_shared])), list(chain(*stages[num_shared:]))
    return _blank(trunk, tail), nn.ModuleList(_blank(build(), head) for _ in range(num_branches))


def _blank(network: nn.Module, names: Sequence[str]) -> nn.Module:
    for name in names:
        setattr(network, name, nn.Identity())
    return network
