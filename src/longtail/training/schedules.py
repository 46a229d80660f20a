"""The learning rate, as pure functions of the epoch."""

import math
from collections.abc import Sequence


def step_multiplier(epoch: int, milestones: Sequence[int], decay: float, warmup: int) -> float:
    """Factor on the base rate for ``epoch``, counted from 0.

    One factor ``decay`` for each milestone reached; a straight climb over the first ``warmup`` epochs.
    """
    multiplier = decay ** sum(epoch >= milestone for milestone in milestones)
    return multiplier * float(1 + epoch) / warmup if epoch < warmup else multiplier


def cosine_rate(
    epoch: float, epochs: int, base: float, final: float = 0.0, warmup: float = 0, warmup_start: float = 0.0
) -> float:
    """Learning rate at ``epoch``, counted from 0 and with a fraction inside an epoch.

    A straight climb from ``warmup_start`` to ``base`` over ``warmup`` epochs, then half a cosine over all ``epochs``
    (it does not begin anew after warm-up, as in timm and Swin) down to ``final``.
    """
    if epoch < warmup:
        return warmup_start + epoch * ((base - warmup_start) / warmup)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * epoch / epochs))
