"""Building a network whose weights are loaded right afterwards, without drawing random ones first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

# What random initialisation, of torch and of timm, spends its time on. Building a network clamps nothing else.
_DRAWS = {
    *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_),
    *(init.uniform_, init.normal_, init.kaiming_uniform_, init.kaiming_normal_),
}


class skip_init(TorchFunctionMode):
    """Within this context random weights are zeros.

    For models that ``load_state_dict(..., strict=True)`` fills at once. They are not left as they come out of memory:
    truncated distributions are drawn again until no value is out of bounds, which such values may be for ever.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Fills a tensor that was to be drawn with zeros."""
        kwargs = kwargs or {}
        if func in _DRAWS:
            with torch.no_grad():
                return (args[0] if args else kwargs["tensor"]).zero_()
        return func(*args, **kwargs)
