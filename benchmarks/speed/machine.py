"""The images that all variants of a speed benchmark use, and the peak speed of the machine."""

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for `result`

NUM_IMAGES, NUM_CLASSES, NUM_EXPERTS, BATCH_SIZE = 10_847, 100, 3, 128
"""CIFAR-100-LT with imbalance factor 100, and RIDE's default model and batch size"""

TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


def noise_images() -> tuple[np.ndarray, np.ndarray]:
    """Returns as many images of noise as CIFAR-100-LT has, (N, 32, 32, 3), and random labels (N,)."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
    return pixels, rng.integers(0, NUM_CLASSES, NUM_IMAGES)


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matmul_rate(device: torch.device, precision: str) -> float:
    """Returns the floating-point operations per second of the fastest of 8 products of large square matrices."""
    side = 8192 if device.type == "cuda" else 1536
    first, second = (torch.randn(side, side, device=device, dtype=TYPES[precision]) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        first @ second
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def matmul_rates(device: torch.device) -> dict[str, float]:
    """Returns `matmul_rate` of each precision."""
    return {precision: matmul_rate(device, precision) for precision in TYPES}
