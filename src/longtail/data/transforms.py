"""Pipelines that bring one decoded picture to the network's size: a PIL image in, a uint8 tensor (3, S, S) out.

They draw from torch's global generator. Normalisation happens later, on the device, a batch at a time.
"""

from collections.abc import Callable
from typing import Literal

from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from longtail.errors import InputError

Transform = Callable[[Image.Image], Tensor]


def test_transform(image_size: int, resize: int | None) -> Transform:
    """The shorter side to ``resize`` pixels, then the central square of ``image_size`` pixels; nothing random.

    ``resize`` None is image_size * 256 / 224, rounded.

    Raises:
        InputError: the central square is larger than the picture it is cut from.
    """
    transform: Transform = v2.Compose([*_framing(image_size, resize), v2.PILToTensor()])
    return transform


def train_transform(
    image_size: int,
    crop: Literal["none", "padded", "resized"],
    padding: int,
    scale: tuple[float, float],
    flip: bool,
    rotation: float,
    color_jitter: tuple[float, float, float, float],
    resize: int | None,
) -> Transform:
    """Crop, then mirror, then turn, then change of colours: RIDE's order.

    Args:
        image_size: height and width S of the result.
        crop: resized takes a random part of the picture (``scale``: its share of the area); the others frame it as
            `test_transform` does, and padded then shifts it by up to ``padding`` pixels, filling with black.
        padding: of a padded crop.
        scale: of a resized crop.
        flip: mirror every other picture, left to right.
        rotation: largest angle, in degrees to either side; nearest pixel, corners filled with black.
        color_jitter: strength of the changes of brightness, contrast, saturation and hue.
        resize: shorter side before the central crop, as in `test_transform`; a resized crop does not use it.

    Raises:
        InputError: the central square is larger than the picture it is cut from.
    """
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if crop == "resized":
        bilinear = InterpolationMode.BILINEAR
        steps.append(v2.RandomResizedCrop(image_size, scale=scale, interpolation=bilinear, antialias=True))
    else:
        steps.extend(_framing(image_size, resize))
    if crop == "padded":
        steps.append(v2.RandomCrop(image_size, padding=padding))
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if rotation:
        steps.append(v2.RandomRotation(rotation, interpolation=InterpolationMode.NEAREST))
    if any(color_jitter):
        steps.append(v2.ColorJitter(*color_jitter))
    transform: Transform = v2.Compose([*steps, v2.PILToTensor()])
    return transform


def default_resize(image_size: int) -> int:
    """Shorter side before the central crop: 256 for 224, and in proportion."""
    return round(image_size * 256 / 224)


def _framing(image_size: int, resize: int | None) -> list[Callable[[Image.Image], Image.Image]]:
    shorter_side = default_resize(image_size) if resize is None else resize
    if shorter_side < image_size:
        raise InputError(f"data.resize is {resize}; it must be at least data.image_size, {image_size}")
    bilinear = InterpolationMode.BILINEAR
    return [v2.Resize(shorter_side, interpolation=bilinear, antialias=True), v2.CenterCrop(image_size)]
