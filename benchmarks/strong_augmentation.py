"""Speed of AutoAugment and Cutout in batches, compared with torchvision's transforms of one image at a time.

    python benchmarks/strong_augmentation.py [--device cuda]

The baseline transforms PIL images, without worker processes. On the CPU both use one thread and take turns; compare
their ratio, not the absolute speeds. Images are smooth, because the operations' speed hardly depends on them.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from PIL import Image
from result import report
from torchvision.transforms import v2

from longtail.data.loaders import BatchAugmentation, EpochOrder, MemoryLoader, Normalise
from longtail.data.splits import ImageSplit
from longtail.data.transforms import Cutout

NUM_IMAGES, BATCH_SIZE, BASELINE_IMAGES, ROUNDS = 10_847, 128, 1000, 5
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
STRONG = BatchAugmentation(padding=4, flip=True, auto_augment="cifar10", cutout=16)
CASES = {
    "crop, flip": BatchAugmentation(padding=4, flip=True),
    "crop, flip, AutoAugment": STRONG._replace(cutout=0),
    "crop, flip, AutoAugment, Cutout": STRONG,
}


def photos(num: int) -> np.ndarray:
    coarse = torch.rand(num, 3, 6, 6, generator=torch.Generator().manual_seed(0)) * 255
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear")
    return smooth.permute(0, 2, 3, 1).to(torch.uint8).contiguous().numpy()


def one_by_one(how: BatchAugmentation, pixels: np.ndarray) -> Callable[[], int]:
    steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    if how.auto_augment != "none":
        steps.append(v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10))
    if how.cutout:
        steps.append(Cutout(how.cutout))
    to_input = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    transform = v2.Compose([*steps, *to_input])
    images = [Image.fromarray(image) for image in pixels[:BASELINE_IMAGES]]

    def epoch() -> int:
        for start in range(0, len(images), BATCH_SIZE):
            torch.stack([transform(image) for image in images[start : start + BATCH_SIZE]])
        return len(images)

    return epoch


def in_batches(how: BatchAugmentation, pixels: np.ndarray, device: torch.device) -> Callable[[], int]:
    split = ImageSplit(np.zeros(len(pixels), dtype=np.int64), pixels)
    order = EpochOrder(len(pixels), BATCH_SIZE, shuffle=True)
    loader = MemoryLoader(split, order, device=device, normalise=Normalise(MEAN, STD, device), augmentation=how)

    def epoch() -> int:
        for _ in loader.epoch(1):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()
        return len(pixels)

    return epoch


def speeds(epochs: list[Callable[[], int]]) -> list[float]:
    """Images per second of each, the median of rounds in which they take turns."""
    rounds = []
    for _ in range(1 + ROUNDS):
        measured = []
        for epoch in epochs:
            start = time.perf_counter()
            measured.append(epoch() / (time.perf_counter() - start))
        rounds.append(measured)
    return [median(column) for column in zip(*rounds[1:], strict=True)]  # the first round allocates memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", type=torch.device)
    device = parser.parse_args().device
    pixels, lines = (
        photos(NUM_IMAGES),
        [f"{'images/s':33} one by one  in batches  ratio   ms per batch of {BATCH_SIZE}"],
    )
    for name, how in CASES.items():
        slow, fast = speeds([one_by_one(how, pixels), in_batches(how, pixels, device)])
        lines.append(f"{name:33} {slow:10,.0f}  {fast:10,.0f}  {fast / slow:5.1f}   {1e3 * BATCH_SIZE / fast:6.2f}")
    note = f"In batches on {torch.cuda.get_device_name()}" if device.type == "cuda" else "The machine was busy"
    report(lines, f"strong-augmentation-{device.type}.txt", note)


if __name__ == "__main__":
    main()
