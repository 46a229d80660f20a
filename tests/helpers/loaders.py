"""Small images in memory, and a model and loaders for them."""

import numpy as np
import torch
from torch import nn

from longtail.data.loaders import BatchAugmentation, EpochOrder, MemoryLoader, Normalise
from longtail.data.splits import ImageSplit
from longtail.runtime.shard import SINGLE_SHARD
from longtail.training.tasks import Step

CPU = torch.device("cpu")
NORMALISE = Normalise([0.5] * 3, [0.25] * 3, CPU)


def small_split(num=20, num_classes=4, size=8):
    """Images of noise with random labels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (num, size, size, 3), dtype=np.uint8)
    return ImageSplit(rng.integers(0, num_classes, num), pixels=pixels)


def loader(
    split, batch_size=8, *, seed=0, shuffle=False, sampler=None, shard=SINGLE_SHARD, other_views=(), **augmentation
):
    """A loader of images in memory; ``augmentation`` are the fields of `BatchAugmentation`."""
    order = EpochOrder(len(split), batch_size, seed, shuffle, sampler, shard)
    changes = BatchAugmentation(**augmentation) if augmentation else None
    return MemoryLoader(split, order, device=CPU, normalise=NORMALISE, augmentation=changes, other_views=other_views)


def images_and_labels(batches):
    """All images and labels of some batches: (N, 3, H, W) and (N,)."""
    pairs = [(batch.inputs, batch.own_labels) for batch in batches]
    images, labels = zip(*pairs, strict=True)
    return torch.cat(images), torch.cat(labels)


class Linear(nn.Module):
    """Softmax regression as a task, small enough to compute by hand."""

    def __init__(self, features, classes):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(features, classes)
        self.epochs = []

    def forward(self, batch, epoch):
        self.epochs.append(epoch)
        logits, labels = self.layer(batch.inputs.flatten(1)), batch.own_labels
        return Step(nn.functional.cross_entropy(logits, labels), (logits.argmax(1) == labels).sum())
