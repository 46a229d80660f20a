"""Images per second of CIFAR's training pipeline: whole batches in memory against one picture at a time.

    python benchmarks/augmentation.py

The baseline is the usual way: torchvision's PIL transforms (crop, flip, rotation, tensor, normalise) in a DataLoader
with 2 workers. Both are measured in the same run; the ratio is what counts.
"""

import time

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

from longtail.data.loaders import MemoryLoader, Normalise
from longtail.data.splits import ImageSplit

NUM_IMAGES, BATCH_SIZE, EPOCHS = 10_847, 128, 3
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


class Pictures(TensorDataset):
    """What torchvision's CIFAR dataset does with a picture."""

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

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pixels[index]), int(self.labels[index])


def images_per_second(batches) -> float:
    start = time.perf_counter()
    images = sum(len(labels) for epoch in range(EPOCHS) for _, labels in batches(epoch))
    return images / (time.perf_counter() - start)


def main() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = rng.integers(0, 100, NUM_IMAGES)
    usual = DataLoader(Pictures(pixels, labels), BATCH_SIZE, shuffle=True, num_workers=2, persistent_workers=True)
    ours = MemoryLoader(
        ImageSplit(labels, pixels),
        BATCH_SIZE,
        device=torch.device("cpu"),
        normalise=Normalise(MEAN, STD, torch.device("cpu")),
        shuffle=True,
        padding=4,
        flip=True,
        rotation=15,
    )
    list(usual), list(ours.epoch(0))  # start the workers, touch the memory
    before, after = images_per_second(lambda epoch: usual), images_per_second(ours.epoch)
    print(f"one picture at a time, 2 workers: {before:8,.0f} images/s")
    print(f"a batch at a time, in memory:     {after:8,.0f} images/s, {after / before:.1f} times as many")


if __name__ == "__main__":
    main()
