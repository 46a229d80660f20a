"""Building a network whose weights are loaded right afterwards, without drawing random ones first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

# What random initialisation, of torch and of timm, spends its time on. Building a network clamps nothing else.
_DRAWS = {
    *(Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, Tensor.clamp_),
    *(init.uniform_, init.normal_, init.trunc_normal_, init.kaiming_uniform_, init.kaiming_normal_),
}


class Uninitialised(TorchFunctionMode):
    """Within this context random weights are left as they come out of memory.

    For models that ``load_state_dict(..., strict=True)`` fills at once.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Hands a tensor that was to be drawn back as it is."""
        kwargs = kwargs or {}
        if func in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
