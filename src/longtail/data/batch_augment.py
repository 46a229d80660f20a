"""Augmentation of small images, a whole batch at a time, on the device where they lie."""

from typing import NamedTuple

import torch
from torch import Tensor


class AugmentParams(NamedTuple):
    """How each of N images is moved: crop first, then mirror, then turn, as RIDE does."""

    offset: Tensor
    """(N, 2), where the crop starts in the padded image: down, right; pixels"""

    flip: Tensor
    """(N,), whether mirrored left to right"""

    angle: Tensor
    """(N,), counter-clockwise, degrees"""

    def take(self, positions: Tensor) -> "AugmentParams":
        """Those of some of the images."""
        return AugmentParams(*(part[positions] for part in self))


def draw_augment_params(
    num: int, padding: int, flip: bool, rotation: float, generator: torch.Generator
) -> AugmentParams:
    """Draws params for ``num`` images at once, on the generator's device.

    Offsets are uniform over the 2 * padding + 1 places each way, half of the images are mirrored where ``flip`` is
    set, angles are uniform up to ``rotation`` degrees either way: the distributions of torchvision's RandomCrop,
    RandomHorizontalFlip and RandomRotation.
    """
    offset = torch.randint(0, 2 * padding + 1, (num, 2), generator=generator)
    mirrored = torch.rand(num, generator=generator) < (0.5 if flip else 0.0)
    angle = (torch.rand(num, generator=generator) * 2 - 1) * rotation
    return AugmentParams(offset, mirrored, angle)


def apply_augment(images: Tensor, positions: Tensor, params: AugmentParams, padding: int) -> Tensor:
    """Crops, mirrors and turns images in one gather of pixels; what comes from outside is black.

    Args:
        images: all images (N, H, W, 3), contiguous.
        positions: which to take, (B,).
        params: of those B images.
        padding: what the offsets were drawn for.

    Returns:
        (B, H, W, 3), of the same type.
    """
    _, height, width, channels = images.shape
    device = images.device
    # Where does each pixel of the result come from? Back through the turn (PIL's: centre of the picture, centres of
    # pixels, nearest one), then the mirror, then the crop.
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
