"""What is done to whole training batches: random erasing, mixup and cutmix, label smoothing."""

from collections.abc import Iterator

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from longtail.data.loaders import Batch, Loader
from longtail.runtime.seed import seeded


class MixedLoader:
    """A `Loader` over another one's batches; with soft targets as their third part where anything makes them soft.

    What is drawn for a batch depends on the seed, the epoch, the batch's number and, where several processes train
    together, the process alone; each mixes the images of its own share.

    Args:
        loader: yields normalised images and their labels.
        num_classes: C.
        mixup: images are mixed in shares from Beta(mixup, mixup) (Zhang et al., 2018); 0: not.
        cutmix: rectangles are exchanged, of areas from Beta(cutmix, cutmix) (Yun et al., 2019); 0: not. With both, each
            batch gets one of them at random.
        label_smoothing: probability that the targets spread over all classes (Szegedy et al., 2016).
        random_erasing: share of images with a rectangle of normal noise (Zhong et al., 2020).
        seed: of everything random here.
        device: where the images are.
    """

    def __init__(
        self,
        loader: Loader,
        num_classes: int,
        *,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        label_smoothing: float = 0.0,
        random_erasing: float = 0.0,
        seed: int = 0,
        device: torch.device,
    ):
        self.num_images, self.batch_size, self.shard = loader.num_images, loader.batch_size, loader.shard
        self._loader = loader
        self._num_classes, self._smoothing = num_classes, label_smoothing
        self._erase = RandomErasing(random_erasing, mode="pixel", device=str(device)) if random_erasing else None
        self._mix = None
        if mixup or cutmix:
            self._mix = Mixup(mixup, cutmix, label_smoothing=label_smoothing, num_classes=num_classes)
        self._seed, self._device = seed, device

    def __len__(self) -> int:
        return len(self._loader)

    def labels(self, epoch: int) -> Tensor:
        """The images' own, (num_images,), on the CPU."""
        return self._loader.labels(epoch)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Images (B, 3, H, W), labels (B,) of their own, and perhaps soft targets (B, C)."""
        for step, (images, labels, *_) in enumerate(self._loader.epoch(epoch, first), start=first):
            with seeded(self._seed, epoch, step, 1 + 2 * self.shard.rank, device=self._device):
                if self._erase is not None:
                    images = self._erase(images)
                batch: Batch = (images, labels)
                if self._mix is not None:
                    batch = (images, labels, self._mixed(self._mix, images, labels))
                elif self._smoothing:
                    batch = (images, labels, self._unmixed(labels))
            yield batch

    def _mixed(self, mix: Mixup, images: Tensor, labels: Tensor) -> Tensor:
        """Mixes images in place; returns their targets."""
        # It pairs the first image with the last, and takes even batches only: one too many stays as it is.
        even = len(labels) - len(labels) % 2
        _, targets = mix(images[:even], labels[:even])
        return torch.cat([targets, self._unmixed(labels[even:])])

    def _unmixed(self, labels: Tensor) -> Tensor:
        targets: Tensor = mixup_target(labels, self._num_classes, smoothing=self._smoothing)
        return targets
