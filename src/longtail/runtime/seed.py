"""Independent random generators from one seed and what they are for."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on all the numbers, say seed and epoch, and on nothing else.

    Drawing on the CPU gives the same order and augmentation on every device.
    """
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@contextmanager
def seeded(*numbers: int, device: torch.device | None = None, only_torch: bool = False) -> Iterator[None]:
    """Within it, the global generators of torch, NumPy and Python depend on the numbers alone; afterwards all are back.

    For code of others that draws from them.

    Args:
        numbers: as for `generator`.
        device: a GPU whose generator is meant too.
        only_torch: leave out NumPy's and Python's, which take five times as long as torch's, for code that does not
            draw from them.
    """
    own = generator(*numbers)
    gpus = []
    if device is not None and device.type == "cuda":
        gpus = [torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)]
    others = nullcontext() if only_torch else _others_seeded(own.initial_seed())
    with others, torch.random.fork_rng(devices=gpus):
        # Not torch.manual_seed, which remembers every call of a process that has not used its GPU yet.
        torch.set_rng_state(own.get_state())
        if gpus:
            torch.cuda.default_generators[gpus[0].index].manual_seed(own.initial_seed())
        yield


@contextmanager
def _others_seeded(seed: int) -> Iterator[None]:
    python, legacy = random.getstate(), np.random.get_state()
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)
