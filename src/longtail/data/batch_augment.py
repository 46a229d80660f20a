"""Augmentation of small images by batch, on their device."""

from typing import NamedTuple

import torch
from torch import Tensor


class AugmentParams(NamedTuple):
    """Random parameters of N images: crop, then flip, then rotation, which is RIDE's order."""

    offset: Tensor
    """(N, 2), top and left of the crop in the padded image, pixels"""

    flip: Tensor
    """(N,), whether the image is mirrored horizontally"""

    angle: Tensor
    """(N,), degrees, counter-clockwise"""

    def take(self, positions: Tensor) -> "AugmentParams":
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
    _, height, width, channels = images.shape
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
    row, column = row.clamp_(0, height - 1), column.clamp_(0, width - 1)
    pixel = (positions[:, None, None] * height + row) * width + column
    gathered = images.view(-1, channels)[pixel.flatten()].view(*pixel.shape, channels)
    return gathered * inside[..., None]
