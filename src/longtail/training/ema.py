"""Weight averaging: an exponential moving average (EMA) of the weights during training."""

import copy

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from longtail.models.multi_expert import MultiExpert


class WeightAverage:
    """Exponential moving average of a model's parameters and of its batch norms' statistics.

    The decay of update n, from 0, is ``min(decay, (1 + n) / (10 + n))``: the initial weights are soon forgotten. Unlike
    torch's `AveragedModel`, which keeps n in a tensor, an update does not wait for the device.

    Args:
        model: on its device, with its initial weights. It is trained in place.
        decay: of the average, below 1.

    Attributes:
        model: a copy of the model with the averages.
    """

    def __init__(self, model: MultiExpert, decay: float):
        self.model, self._decay = copy.deepcopy(model), decay
        # These tensors share the memory of parameters and persistent buffers.
        averages, current = self.model.state_dict().values(), model.state_dict().values()
        pairs = list(zip(averages, current, strict=True))
        self._averaged = [pair for pair in pairs if pair[0].is_floating_point()]
        self._copied = [pair for pair in pairs if not pair[0].is_floating_point()]
        """Counters of batches"""

    def update(self, number: int) -> None:
        """Includes the present weights; the same ``number`` gives the same average. ``number`` counts from 0."""
        decay = min(self._decay, (1 + number) / (10 + number))
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        average(*map(list, zip(*self._averaged, strict=True)), number)
        if self._copied:
            counters, values = map(list, zip(*self._copied, strict=True))
            torch._foreach_copy_(counters, values)
