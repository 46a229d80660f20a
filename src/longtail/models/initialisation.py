"""Construction of networks without random initial weights."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

# The slow functions of random initialisation in torch and timm. Construction of a network clamps nothing else.
_DRAWS = {
    *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_),
    *(init.uniform_, init.normal_, init.kaiming_uniform_, init.kaiming_normal_),
}


class skip_init(TorchFunctionMode):
    """Context in which random initial weights are zeros, for models whose weights are loaded right afterwards.

    Weights do not stay uninitialised: torch draws truncated distributions again until all values are within bounds,
    which never ends if uninitialised memory contains other values.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Fills a tensor with zeros instead of random numbers."""
        kwargs = kwargs or {}
        if func in _DRAWS:
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
        return func(*args, **kwargs)
