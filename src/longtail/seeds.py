"""Independent random generators from one seed and what they are for."""

import numpy as np
import torch


def generator(*numbers: int) -> torch.Generator:
    """A CPU generator that depends on all the numbers, say seed and epoch, and on nothing else.

    Drawing on the CPU gives the same order and augmentation on every device.
    """
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
