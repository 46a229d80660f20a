"""Small images in memory, and a model and loaders for them."""

import numpy as np
import torch
from torch import nn

from longtail.data.loaders import MemoryLoader, Normalise
from longtail.data.splits import ImageSplit
from longtail.training.tasks import Step

CPU = torch.device("cpu")


def small_split(num=20, num_classes=4, size=8):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (num, size, size, 3), dtype=np.uint8)
    return ImageSplit(rng.integers(0, num_classes, num), pixels=pixels)


def loader(split, batch_size=8, **options):
    return MemoryLoader(split, batch_size, device=CPU, normalise=Normalise([0.5] * 3, [0.25] * 3, CPU), **options)


class Linear(nn.Module):
    """Softmax regression as a task: small enough to follow by hand."""

    def __init__(self, features, classes):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(features, classes)
        self.epochs = []

    def forward(self, images, labels, epoch, *, batch_labels=None):
        self.epochs.append(epoch)
        logits = self.layer(images.flatten(1))
        return Step(nn.functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).sum())
