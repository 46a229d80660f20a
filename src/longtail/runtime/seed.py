"""Independent random generators, derived from one seed and a purpose."""

import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch


def generator(*numbers: int) -> torch.Generator:
    """Returns a CPU generator that depends on the numbers alone, such as seed and epoch.

    Random numbers from the CPU give the same order and augmentation on every device.
    """
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


@contextmanager
def seeded(*numbers: int, device: torch.device | None = None, only_torch: bool = False) -> Iterator[None]:
    """Within it, the global generators of torch, NumPy and Python are seeded; afterwards they are restored.

    For library code that draws from them.

    Args:
        numbers: see `generator`.
        device: a GPU whose generator is seeded too.
        only_torch: leaves out NumPy's and Python's generators, which take five times as long as torch's.
    """
    source = generator(*numbers)
    gpus = []
    if device is not None and device.type == "cuda":
        gpus = [torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)]
    others = nullcontext() if only_torch else _others_seeded(source.initial_seed())
    with others, torch.random.fork_rng(devices=gpus):
        # Not torch.manual_seed, which stores every call in a process that has not used its GPU yet.
        torch.set_rng_state(source.get_state())
        if gpus:
            torch.cuda.default_generators[gpus[0].index].manual_seed(source.initial_seed())
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
