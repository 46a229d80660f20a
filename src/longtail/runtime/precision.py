"""What stays out of reach of autocast."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Within it, products on the tensor's device are computed in the precision of their factors, also under autocast.

    For what costs little and is compared closely, such as logits with margins: half precision has three digits.
    """
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
