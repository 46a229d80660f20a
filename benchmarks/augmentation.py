"""Speed of CIFAR's training pipeline: batches in memory, compared with one image at a time.

    python benchmarks/augmentation.py

The baseline is a DataLoader with 2 workers and torchvision's transforms of PIL images (crop, flip, rotation, tensor,
normalise). Both are measured in the same run; compare their ratio, not the absolute speeds.
"""

import time
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from longtail.data.loaders import BatchAugmentation, EpochOrder, MemoryLoader, Normalise
from longtail.data.splits import ImageSplit

NUM_IMAGES, BATCH_SIZE, EPOCHS = 10_847, 128, 3
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class PilImages(Dataset[tuple[Tensor, int]]):
    """Transforms one image at a time, as torchvision's CIFAR data set does."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        self.pixels, self.labels = pixels, labels
        self.transform = transforms.Compose([
            transforms.ToPILImage(),
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(15),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), int(self.labels[index])


def images_per_second(batches: Callable[[int], Iterable]) -> float:
    start = time.perf_counter()
    images = sum(len(batch[1]) for epoch in range(EPOCHS) for batch in batches(epoch))
    return images / (time.perf_counter() - start)


def main() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 100, NUM_IMAGES)
    baseline = DataLoader(PilImages(pixels, labels), BATCH_SIZE, shuffle=True, num_workers=2, persistent_workers=True)
    loader = MemoryLoader(
        ImageSplit(labels, pixels),
        EpochOrder(NUM_IMAGES, BATCH_SIZE, shuffle=True),
        device=torch.device("cpu"),
        normalise=Normalise(MEAN, STD, torch.device("cpu")),
        augmentation=BatchAugmentation(padding=4, flip=True, rotation=15),
    )
    list(baseline), list(loader.epoch(0))  # starts the workers and allocates memory
    before, after = images_per_second(lambda epoch: baseline), images_per_second(loader.epoch)
    print(f"one image at a time, 2 workers:  {before:8,.0f} images/s")
    print(f"a batch at a time, in memory:    {after:8,.0f} images/s, ratio {after / before:.1f}")


if __name__ == "__main__":
    main()
