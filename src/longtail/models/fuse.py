"""A network for answering only: batch norms become part of the convolutions before them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longtail.models.multi_expert import MultiExpert
from longtail.models.split import Identity


def fuse_batch_norms(model: MultiExpert, image_size: int) -> MultiExpert:
    """A copy in eval mode that answers the same but for rounding, and faster; it is not to be trained or saved.

    In eval mode a batch norm is a factor and a summand for each channel, which the weights of the convolution before
    it can have in them. That is done where a convolution's result goes into one batch norm and nowhere else, which is
    found by following an image without content through the model. Everything else stays as it is, so that any network
    is taken; of those without batch norms a plain copy comes back.

    Args:
        model: on any device, in either mode; is left as it was.
        image_size: height and width of the images, pixels.
    """
    answering = copy.deepcopy(model).eval()
    for before, after in _pairs(copy.deepcopy(model).to("meta").eval(), image_size):
        norm: Any = answering.get_submodule(after)
        convolution: Any = answering.get_submodule(before)
        answering.set_submodule(before, fuse_conv_bn_eval(convolution, norm))
        # timm's batch norms end with their activation.
        rest = nn.Sequential(norm.drop, norm.act) if isinstance(norm, BatchNormAct2d) else Identity()
        answering.set_submodule(after, rest)
    return answering


def _pairs(model: nn.Module, image_size: int) -> list[tuple[str, str]]:
    """Names of convolutions and batch norms of which the second takes all of what the first yields, once."""
    uses, calls = _Uses(), dict[str, int]()
    made: dict[int, str] = {}  # the convolution that a tensor comes from
    found: dict[str, str] = {}
    hooks = []

    def after_convolution(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, inputs: Sequence[Tensor], output: Tensor) -> None:
            calls[name] = calls.get(name, 0) + 1
            made[id(output)] = name
            uses.watch(output)

        return watch

    def before_norm(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, inputs: Sequence[Tensor]) -> None:
            calls[name] = calls.get(name, 0) + 1
            if (source := made.get(id(inputs[0]))) is not None:
                found[name] = source

        return watch

    for name, module in model.named_modules():
        # Their own types only: others, such as timm's standardised convolutions, compute something else.
        if type(module) is nn.Conv2d:
            hooks.append(module.register_forward_hook(after_convolution(name)))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(before_norm(name)))
    with torch.no_grad(), uses:
        model(torch.empty(1, 3, image_size, image_size, device="meta"))
    for hook in hooks:
        hook.remove()
    once = {made[tensor] for tensor, number in uses.numbers.items() if number == 1}
    return [
        (source, name) for name, source in found.items() if source in once and calls[source] == 1 and calls[name] == 1
    ]


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that take certain tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.numbers: dict[int, int] = {}
        self._kept: list[Tensor] = []

    def watch(self, tensor: Tensor) -> None:
        self.numbers[id(tensor)] = 0
        self._kept.append(tensor)  # or another one might get its id

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        for given in tree_leaves((args, kwargs)):
            if isinstance(given, Tensor) and id(given) in self.numbers:
                self.numbers[id(given)] += 1
        return func(*args, **(kwargs or {}))
