"""Augmentation of small images by batch, on their device."""

from typing import NamedTuple

import torch
from torch import Tensor

from longtail.data.auto_augment import StrongAugmentation, draw_strong_params
from longtail.data.image_ops import gather_pixels
from longtail.utils.choices import Policy


class BatchAugmentation(NamedTuple):
    """Random changes to small images, many at a time, in this order."""

    padding: int = 0
    """Of the random crop, pixels"""

    flip: bool = False
    """Mirror half of the images"""

    rotation: float = 0.0
    """Largest angle, degrees"""

    auto_augment: Policy = "none"
    """Policy of AutoAugment (Cubuk et al., 2019)"""

    cutout: int = 0
    """Side of the square that is blackened, pixels"""


class AugmentParams(NamedTuple):
    """Random parameters of N images: crop, then flip, then rotation, which is RIDE's order."""

    offset: Tensor
    """(N, 2), top and left of the crop in the padded image, pixels"""

    flip: Tensor
    """(N,), whether the image is mirrored horizontally"""

    angle: Tensor
    """(N,), degrees, counter-clockwise"""

    def take(self, positions: Tensor | slice) -> "AugmentParams":
        """Returns the parameters of the images at these positions."""
        return AugmentParams(*(part[positions] for part in self))


def draw_augment_params(
    num: int, padding: int, flip: bool, rotation: float, generator: torch.Generator
) -> AugmentParams:
    """Draws parameters of ``num`` images, on the generator's device.

    Offsets are uniform from 0 to 2 * padding, half of the images are mirrored if ``flip``, and angles are uniform from
    -rotation to rotation degrees. These are the distributions of torchvision's RandomCrop, RandomHorizontalFlip and
    RandomRotation.
    """
    offset = torch.randint(0, 2 * padding + 1, (num, 2), generator=generator)
    mirrored = torch.rand(num, generator=generator) < (0.5 if flip else 0.0)
    angle = (torch.rand(num, generator=generator) * 2 - 1) * rotation
    return AugmentParams(offset, mirrored, angle)


def apply_augment(images: Tensor, positions: Tensor, params: AugmentParams, padding: int) -> Tensor:
    """Crops, flips and rotates images in one gather of pixels. Pixels from outside an image are black.

    Args:
        images: all images (N, H, W, 3), contiguous.
        positions: images to augment, (B,).
        params: of these B images.
        padding: that of `draw_augment_params`.

    Returns:
        (B, H, W, 3), of the same type.
    """
    _, height, width, _ = images.shape
    device = images.device
    # The source of each pixel of the result. Undo the rotation (as PIL: about the centre of the image, nearest pixel),
    # then the flip, then the crop.
    x = torch.arange(width, device=device) + (0.5 - width / 2)
    y = (torch.arange(height, device=device) + (0.5 - height / 2))[:, None]
    radians = torch.deg2rad(params.angle)[:, None, None]
    cos, sin = radians.cos(), radians.sin()
    column = (cos * x - sin * y + width / 2).floor().long()
    row = (sin * x + cos * y + height / 2).floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    column = torch.where(params.flip[:, None, None], width - 1 - column, column)
    row = row + params.offset[:, 0, None, None] - padding
    column = column + params.offset[:, 1, None, None] - padding
    inside &= (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return gather_pixels(images, positions, row, column, inside)


class DrawnAugmentation:
    """Random changes to all images of an epoch, drawn on the CPU.

    Args:
        augmentation: what changes.
        num: N, images to draw for.
        size: height and width of the images.
        generator: to draw from, on the CPU.
    """

    def __init__(self, augmentation: BatchAugmentation, num: int, size: tuple[int, int], generator: torch.Generator):
        self._padding, self._cutout = augmentation.padding, augmentation.cutout
        self._params = draw_augment_params(num, *augmentation[:3], generator)
        self._strong_params = None
        if augmentation.auto_augment != "none" or self._cutout:
            self._strong_params = draw_strong_params(num, augmentation.auto_augment, size, generator)
        self._strong: StrongAugmentation | None = None

    def prepare(self, augment_ids: Tensor, device: torch.device, chunks: list[slice]) -> None:
        """Sends the parameters of the epoch's images to the device, once.

        Args:
            augment_ids: which parameters each image of the epoch gets: (M,), on the CPU.
            device: of the images.
            chunks: the parts of the epoch that are augmented at once.
        """
        self._params = AugmentParams(*(part.to(device) for part in self._params.take(augment_ids)))
        if self._strong_params is not None:
            params = self._strong_params.take(augment_ids)
            self._strong = StrongAugmentation(params, self._cutout, device, chunks)

    def __call__(self, images: Tensor, positions: Tensor, chunk: slice) -> Tensor:
        """Augments the images of one of the chunks.

        Args:
            images: all images (N, H, W, 3), contiguous.
            positions: of the chunk's images, (B,).
            chunk: their places in the epoch.
        """
        changed = apply_augment(images, positions, self._params.take(chunk), self._padding)
        return changed if self._strong is None else self._strong(changed, chunk)
