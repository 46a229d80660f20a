"""What a model computes for one image: multiply-accumulates of each part, and the expected cost of a routing."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from longtail.models.multi_expert import MultiExpert
from longtail.utils.errors import InputError

FLOPS_PER_MAC = 2
"""A multiplication and an addition. RIDE and thop call multiply-accumulates FLOPs."""


@dataclass(frozen=True)
class Cost:
    """Multiply-accumulates (MACs) for one image: of convolutions, linear layers and attention, as torch counts them.

    Norms, activations, pooling and biases are left out; they are one or two percent of the arithmetic.
    """

    trunk: int
    """computed once"""

    branches: tuple[int, ...]
    """E numbers; each with its use of the neck"""

    heads: tuple[int, ...]
    """E numbers"""

    router: tuple[int, ...] = ()
    """Its E - 1 steps, the first after one expert; empty where there is no router"""

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.branches)

    @property
    def total(self) -> int:
        """All experts, which needs no router."""
        return self.prefix(self.num_experts)

    def prefix(self, num_experts: int) -> int:
        """The first experts, on every image and without a router."""
        assert 1 <= num_experts <= self.num_experts
        return self.trunk + sum(self.branches[:num_experts]) + sum(self.heads[:num_experts])

    def routed(self, num_experts: int) -> int:
        """An image that the router gives this many experts: each of them is followed by a step, but for the last."""
        return self.prefix(num_experts) + sum(self.router[:num_experts])

    def expected(self, shares: Sequence[float]) -> float:
        """The mean over images of which ``shares[k]`` use k + 1 experts.

        Args:
            shares: E of them; fractions, percents or numbers of images, brought to a sum of 1.

        Raises:
            InputError: another number of shares, or shares that are negative or all zero.
        """
        return sum(share * self.routed(used) for used, share in enumerate(self._checked(shares), start=1))

    def mean_experts(self, shares: Sequence[float]) -> float:
        """Experts that an image uses in the mean; ``shares`` as in `expected`."""
        return sum(share * used for used, share in enumerate(self._checked(shares), start=1))

    def _checked(self, shares: Sequence[float]) -> list[float]:
        if len(shares) != self.num_experts:
            raise InputError(
                f"shares of images by experts used: {len(shares)} of them; there must be {self.num_experts}, for 1 to "
                f"{self.num_experts} experts"
            )
        total = sum(shares)
        if not (all(share >= 0 for share in shares) and 0 < total < math.inf):
            raise InputError(f"shares of images by experts used: {list(shares)}; 0 or more, and not all 0")
        return [share / total for share in shares]


def cost(model: MultiExpert, image_size: int) -> Cost:
    """Counts what each part of a model computes for one image. Nothing is computed, and the model stays as it is.

    Args:
        model: on any device; weights do not matter.
        image_size: height and width of the image, pixels.
    """
    shapes = _shapes_only(model).eval()
    shared, trunk = _macs(shapes.trunk, torch.empty(1, 3, image_size, image_size, device="meta"))
    branches, heads = [], []
    for branch, head in zip(shapes.branches, shapes.heads, strict=True):
        features, macs = _macs(nn.Sequential(branch, shapes.neck), shared)
        branches.append(macs)
        heads.append(_macs(head, features)[1])
    return Cost(trunk, tuple(branches), tuple(heads), _router_steps(model))


def _macs(part: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, int]:
    """What a part yields, and its multiply-accumulates."""
    # Attention as the matrix products it consists of, whatever fused kernel a device would take.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        x = part(x)
    return x, counter.get_total_flops() // FLOPS_PER_MAC


def _shapes_only(model: MultiExpert) -> MultiExpert:
    """A copy of the model whose tensors have shapes and no content."""
    empty: dict[int, Tensor] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    empty |= {id(parameter): nn.Parameter(parameter.to("meta"), False) for parameter in model.parameters()}
    return copy.deepcopy(model, empty)  # type: ignore[arg-type]


def _router_steps(model: MultiExpert) -> tuple[int, ...]:
    """A step is a hidden layer of its own and the output layer, its own or one that all steps share."""
    router = model.router
    if router is None:
        return ()
    hidden: list[Any] = list(router.hidden)
    output: list[Any] = list(router.output)
    return tuple(_linear(layer) + _linear(output[min(step, len(output) - 1)]) for step, layer in enumerate(hidden))


def _linear(layer: nn.Linear) -> int:
    return layer.in_features * layer.out_features
