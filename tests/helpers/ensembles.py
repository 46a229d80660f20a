"""Slow versions of ensembles, and logits with which the two averages differ."""

import numpy as np
import torch


def slow_softmax(row) -> np.ndarray:
    powers = np.exp(np.asarray(row, dtype=np.float64) - max(row))
    return powers / powers.sum()


def slow_ensemble(experts, average: str) -> np.ndarray:
    """Probabilities (C,) of the ensemble of experts with logits (E, C), for one image."""
    rows = np.asarray(experts, dtype=np.float64)
    if average == "logits":
        return slow_softmax(sum(rows) / len(rows))
    return sum(slow_softmax(row) for row in rows) / len(rows)


def random_logits(images=40, experts=3, classes=4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, E, C) of experts with different confidence, and labels (N,)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, experts, classes, generator=generator) * torch.tensor([6.0, 1, 2])[:, None]
    return logits, torch.randint(0, classes, (images,), generator=generator)
