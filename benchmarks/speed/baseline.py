"""The baseline of the speed benchmarks: training and inference of a RIDE model as in the original code.

- Images are augmented one at a time with PIL, in a DataLoader with 2 workers.
- Tensors are float32 in contiguous memory.
- The optimizer updates one parameter after the other.
- Loss and accuracy are read after every step.

Weights, loss, optimizer and the distribution of the augmentations are those of longtail, so both compute the same.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from longtail.losses import Criterion
from longtail.models.multi_expert import MultiExpert
from longtail.models.resnet_cifar import BasicBlock, PaddedShortcut

WORKERS = 2
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
PADDING, ROTATION = 4, 15


class PilImages(Dataset[tuple[Tensor, int]]):
    """Transforms one image at a time, as torchvision's CIFAR data set does."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, train: bool):
        self.pixels, self.labels = pixels, labels
        augmentation = [
            transforms.RandomCrop(32, padding=PADDING),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(ROTATION),
        ]
        to_input = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.transform = transforms.Compose([transforms.ToPILImage(), *(augmentation if train else []), *to_input])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), int(self.labels[index])


def plain_loader(
    pixels: np.ndarray,
    labels: np.ndarray,
    batch_size: int,
    train: bool,
    device: torch.device,
    workers: int = WORKERS,
) -> DataLoader[tuple[Tensor, int]]:
    """Returns a DataLoader, shuffled and augmented for training."""
    return DataLoader(
        PilImages(pixels, labels, train),
        batch_size,
        shuffle=train,
        num_workers=workers,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )


class PlainBlock(nn.Module):
    """A residual block with the weights of a `BasicBlock`, written as in the paper."""

    def __init__(self, block: BasicBlock):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        padded = block.shortcut if isinstance(block.shortcut, PaddedShortcut) else None
        self.stride, self.padding = (padded.stride, padded.padding) if padded else (1, 0)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the same as `BasicBlock`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        out += x
        return F.relu(out)


def to_plain(model: MultiExpert) -> MultiExpert:
    """Replaces the blocks of a CIFAR model by `PlainBlock`s, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BasicBlock):
            model.set_submodule(name, PlainBlock(module))
    return model.to(memory_format=torch.contiguous_format)


def train_step(
    model: MultiExpert,
    criterion: Criterion,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
) -> tuple[float, float]:
    """Trains one step; returns loss and accuracy."""
    optimizer.zero_grad()
    logits = model(images).logits
    loss = criterion(logits, labels, 1)
    loss.backward()
    optimizer.step()
    accuracy = (logits.mean(dim=1).argmax(dim=1) == labels).float().mean().item()
    value: float = loss.item()
    assert math.isfinite(value)
    return value, accuracy
