"""What the machine can do at best, and what both ways of a comparison are given."""

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for `result`

NUM_IMAGES, NUM_CLASSES, NUM_EXPERTS, BATCH_SIZE = 10_847, 100, 3, 128
"""CIFAR-100-LT with an imbalance of 100, and RIDE's usual network and batch."""

TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """As many pictures as CIFAR-100-LT has, of noise, (N, 32, 32, 3), and labels (N,)."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
    return pixels, draw.integers(0, NUM_CLASSES, NUM_IMAGES)


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all that it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, precision: str) -> float:
    """Floating-point operations a second of the best of 8 products of large square matrices."""
    side = 8192 if device.type == "cuda" else 1536
    one, other = (torch.randn(side, side, device=device, dtype=TYPES[precision]) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        synchronise(device)
        start = time.perf_counter()
        one @ other
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def matmul_rates(device: torch.device) -> dict[str, float]:
    return {precision: matmul_rate(device, precision) for precision in TYPES}
