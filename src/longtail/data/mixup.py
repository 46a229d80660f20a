"""Changes to full training batches: random erasing, mixup and cutmix, label smoothing."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from longtail.data.loaders import Batch, Loader
from longtail.runtime.seed import seeded


class MixSettings(NamedTuple):
    """How batches are mixed; by default not at all."""

    mixup: float = 0.0
    """Images are mixed in shares from Beta(mixup, mixup) (Zhang et al., 2018); 0: not"""

    cutmix: float = 0.0
    """Rectangles are exchanged, with areas from Beta(cutmix, cutmix) (Yun et al., 2019); 0: not. With both, one of the
    two at random."""

    label_smoothing: float = 0.0
    """Probability that the targets spread over all classes (Szegedy et al., 2016)"""

    random_erasing: float = 0.0
    """Share of the images that get a rectangle of normal noise (Zhong et al., 2020)"""

    mix_images: int | None = None
    """Images that share one weight or rectangle; None: all images of a process in a batch"""

    mix_probability: float = 1.0
    """Of mixing at all"""

    cutmix_probability: float = 0.5
    """Of cutmix, if both are on"""

    cutmix_range: tuple[float, float] | None = None
    """Smallest and largest side of the rectangle as shares of the image's, instead of areas from Beta"""

    @property
    def are_none(self) -> bool:
        """Whether nothing is changed."""
        return not (self.mixup or self.cutmix or self.label_smoothing or self.random_erasing)


class MixedLoader:
    """A `Loader` that changes the batches of another one, and adds soft targets if anything makes them soft.

    The random numbers of a batch depend on the seed, the epoch, the batch's number and the process alone. Each process
    mixes the images of its own share.

    Args:
        loader: yields normalised images and their labels.
        num_classes: C.
        settings: what to do.
        seed: of all random numbers here.
        device: where the images are.
    """

    def __init__(self, loader: Loader, num_classes: int, settings: MixSettings, *, seed: int = 0, device: torch.device):
        self.num_images, self.batch_size, self.shard = loader.num_images, loader.batch_size, loader.shard
        self._loader = loader
        self._num_classes, self._smoothing = num_classes, settings.label_smoothing
        erasing = settings.random_erasing
        self._erase = RandomErasing(erasing, mode="pixel", device=str(device)) if erasing else None
        self._mix = None
        if settings.mixup or settings.cutmix:
            self._mix = Mixup(
                settings.mixup,
                settings.cutmix,
                cutmix_minmax=settings.cutmix_range,
                prob=settings.mix_probability,
                switch_prob=settings.cutmix_probability,
                label_smoothing=settings.label_smoothing,
                num_classes=num_classes,
            )
        self._mix_images = settings.mix_images
        self._seed, self._device = seed, device

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields batches of images (B, 3, H, W), perhaps with soft targets (B, C)."""
        for step, batch in enumerate(self._loader.epoch(epoch, first), start=first):
            with seeded(self._seed, epoch, step, 1 + 2 * self.shard.rank, device=self._device):
                if self._erase is not None:
                    batch = batch._replace(inputs=self._erase(batch.inputs))
                if self._mix is not None:
                    size = self._mix_images or max(1, len(batch.inputs))
                    groups = zip(torch.split(batch.inputs, size), torch.split(batch.own_labels, size), strict=True)
                    targets = [self._mix_in_place(self._mix, images, labels) for images, labels in groups]
                    batch = batch._replace(soft_targets=torch.cat(targets))
                elif self._smoothing:
                    batch = batch._replace(soft_targets=self._unmixed_targets(batch.own_labels))
            yield batch

    def _mix_in_place(self, mix: Mixup, images: Tensor, labels: Tensor) -> Tensor:
        """Mixes images in place; returns their targets."""
        # Mixup pairs the first image with the last and takes even batches only: an odd last image stays as it is.
        even = len(labels) - len(labels) % 2
        _, targets = mix(images[:even], labels[:even])
        return torch.cat([targets, self._unmixed_targets(labels[even:])])

    def _unmixed_targets(self, labels: Tensor) -> Tensor:
        targets: Tensor = mixup_target(labels, self._num_classes, smoothing=self._smoothing)
        return targets
