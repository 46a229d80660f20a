"""Cost of a model for one image: multiply-accumulates of each module, and the mean cost of a routing."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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

    Norms, activations, pooling and biases are not counted. They are one or two percent of the arithmetic.
    """

    trunk: int
    """Computed once"""

    branches: tuple[int, ...]
    """E numbers; each includes the neck"""

    heads: tuple[int, ...]
    """E numbers"""

    router: tuple[int, ...] = ()
    """Its E - 1 steps, the first after one expert; empty without a router"""

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.branches)

    @property
    def total(self) -> int:
        """All experts, without the router."""
        return self.prefix(self.num_experts)

    def prefix(self, num_experts: int) -> int:
        """The first experts, without the router."""
        assert 1 <= num_experts <= self.num_experts
        return self.trunk + sum(self.branches[:num_experts]) + sum(self.heads[:num_experts])

    def routed(self, num_experts: int) -> int:
        """The first experts, with the router, which takes a step after each expert but the last."""
        return self.prefix(num_experts) + sum(self.router[:num_experts])

    @property
    def prefix_costs(self) -> list[int]:
        """`prefix` of 1 to E experts."""
        return [self.prefix(used) for used in range(1, self.num_experts + 1)]

    @property
    def routed_costs(self) -> list[int]:
        """`routed` of 1 to E experts."""
        return [self.routed(used) for used in range(1, self.num_experts + 1)]

    def times(self, number: int) -> "Cost":
        """The cost of several images, such as the views of one image."""
        branches, heads, router = (
            tuple(number * macs for macs in part) for part in (self.branches, self.heads, self.router)
        )
        return Cost(number * self.trunk, branches, heads, router)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Cost":
        """Returns the cost of which `dataclasses.asdict` made ``content``, also if it was JSON meanwhile."""
        return cls(content["trunk"], *(tuple(content[name]) for name in ("branches", "heads", "router")))

    def expected(self, shares: Sequence[float]) -> float:
        """Returns the mean cost of images of which ``shares[k]`` use k + 1 experts.

        Args:
            shares: E fractions, percentages or numbers of images; they are normalised to a sum of 1.

        Raises:
            InputError: the number of shares is wrong, or shares are negative or all zero.
        """
        return sum(share * cost for share, cost in zip(self._normalised(shares), self.routed_costs, strict=True))

    def mean_experts(self, shares: Sequence[float]) -> float:
        """Returns the mean number of experts that an image uses; ``shares`` as in `expected`."""
        return sum(share * used for used, share in enumerate(self._normalised(shares), start=1))

    def _normalised(self, shares: Sequence[float]) -> list[float]:
        if len(shares) != self.num_experts:
            raise InputError(
                f"there are {len(shares)} shares of images; the model needs {self.num_experts}, for 1 to "
                f"{self.num_experts} experts"
            )
        total = sum(shares)
        if not (all(share >= 0 for share in shares) and 0 < total < math.inf):
            raise InputError(f"the shares of images are {list(shares)}; they must be 0 or more, and not all 0")
        return [share / total for share in shares]


def cost(model: MultiExpert, image_size: int) -> Cost:
    """Counts the multiply-accumulates of a model for one image. Computes nothing, and leaves the model as it is.

    Args:
        model: on any device, with any weights.
        image_size: height and width of the image, pixels.

    Example:
        >>> from longtail.models.multi_expert import create_model
        >>> macs = cost(create_model("resnet32", num_classes=100, num_experts=3), image_size=32)
        >>> print(f"{macs.total / 1e6:.1f} M, the first expert alone {macs.prefix(1) / 1e6:.1f} M")
        100.4 M, the first expert alone 49.5 M
    """
    shapes = _shapes_only(model).eval()
    shared, trunk = _macs(shapes.trunk, torch.empty(1, 3, image_size, image_size, device="meta"))
    branches, heads, router = [], [], []
    for number, (branch, head) in enumerate(zip(shapes.branches, shapes.heads, strict=True)):
        features, branch_macs = _macs(nn.Sequential(branch, shapes.neck), shared)
        branches.append(branch_macs)
        logits, head_macs = _macs(head, features)
        heads.append(head_macs)
        if shapes.router is not None and number < model.num_experts - 1:
            router.append(_macs(partial(shapes.router.step, number, mean_logits=logits), features)[1])
    return Cost(trunk, tuple(branches), tuple(heads), tuple(router))


def _macs(module: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, int]:
    """Returns the output of a module, and its multiply-accumulates."""
    # Attention is counted as its matrix products, whichever fused kernel a device would use.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        x = module(x)
    return x, counter.get_total_flops() // FLOPS_PER_MAC


def _shapes_only(model: MultiExpert) -> MultiExpert:
    """Copies a model without the contents of its tensors."""
    empty: dict[int, Tensor] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    empty |= {id(parameter): nn.Parameter(parameter.to("meta"), False) for parameter in model.parameters()}
    return copy.deepcopy(model, empty)
