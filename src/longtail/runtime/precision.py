"""Full precision under autocast."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager[Any]:
    """Context that disables autocast on the device of a tensor.

    For cheap operations whose results are compared closely, such as logits with margins: half precision has three
    digits.
    """
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)
