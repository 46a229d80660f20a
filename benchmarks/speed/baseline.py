"""The plain way to train and test a RIDE network, as the original code does it: what the tables here compare with.

One picture at a time through PIL in a DataLoader with 2 workers, contiguous NCHW float32, an optimiser that goes from
parameter to parameter, and loss and accuracy read after every step. Weights, loss, optimiser and the distribution of
the augmentation are longtail's, so that both compute the same.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from longtail.models.multi_expert import MultiExpert
from longtail.models.resnet_cifar import BasicBlock, PaddedShortcut

WORKERS = 2
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
AUGMENTATION = {"padding": 4, "flip": True, "rotation": 15.0}


class Pictures(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR data set does with a picture."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, train: bool):
        self.pixels, self.labels = pixels, labels
        change = [
            transforms.RandomCrop(32, padding=4),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(15),
        ]
        to_input = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
        self.transform = transforms.Compose([transforms.ToPILImage(), *(change if train else []), *to_input])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.pixels[index]), int(self.labels[index])


def plain_loader(
    pixels: np.ndarray, labels: np.ndarray, batch_size: int, train: bool, device: torch.device
) -> DataLoader[tuple[Tensor, int]]:
    return DataLoader(
        Pictures(pixels, labels, train),
        batch_size,
        shuffle=train,
        num_workers=WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
    )


class PlainBlock(nn.Module):
    """A residual block with the weights of longtail's, written down as in the paper."""

    def __init__(self, block: BasicBlock):
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = block.conv1, block.bn1, block.conv2, block.bn2
        padded = block.shortcut if isinstance(block.shortcut, PaddedShortcut) else None
        self.stride, self.padding = (padded.stride, padded.padding) if padded else (1, 0)

    def forward(self, x: Tensor) -> Tensor:
        """As `BasicBlock`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        out += x
        return F.relu(out)


def plain(model: MultiExpert) -> MultiExpert:
    """Makes a CIFAR network the plain one, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, BasicBlock):
            model.set_submodule(name, PlainBlock(module))
    return model.to(memory_format=torch.contiguous_format)


def train_step(model: nn.Module, criterion: nn.Module, optimizer, images: Tensor, labels: Tensor, epoch: int) -> float:
    optimizer.zero_grad()
    logits = model(images).logits
    loss = criterion(logits, labels, epoch)
    loss.backward()
    optimizer.step()
    right = (logits.mean(dim=1).argmax(dim=1) == labels).float().mean().item()
    value = loss.item()
    assert value == value, "the loss is NaN"
    assert 0 <= right <= 1
    return value
