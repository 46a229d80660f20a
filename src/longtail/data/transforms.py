"""Pipelines that bring one decoded picture to the network's size: a PIL image in, a uint8 tensor (3, S, S) out.

They draw from the global generators of torch, and RandAugment from those of Python and NumPy. Normalisation happens
later, on the device, a batch at a time.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import PIL.Image
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from longtail.utils.errors import InputError

Transform = Callable[[Image.Image], Tensor]
Interpolation = Literal["bilinear", "bicubic"]


def eval_transform(image_size: int, resize: int | None, interpolation: Interpolation = "bilinear") -> Transform:
    """The shorter side to ``resize`` pixels, then the central square of ``image_size`` pixels; nothing random.

    ``resize`` None is image_size * 256 / 224, rounded.

    Raises:
        InputError: the central square is larger than the picture it is cut from.
    """
    transform: Transform = v2.Compose([*_framing(image_size, resize, interpolation), v2.PILToTensor()])
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
    interpolation: Interpolation = "bilinear",
    rand_augment: str | None = None,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
) -> Transform:
    """Crop, then mirror, then turn, then change of colours: RIDE's order; then RandAugment.

    Args:
        image_size: height and width S of the result.
        crop: resized takes a random part of the picture (``scale``: its share of the area); the others frame it as
            `eval_transform` does, and padded then shifts it by up to ``padding`` pixels, filling with black.
        padding: of a padded crop.
        scale: of a resized crop.
        flip: mirror every other picture, left to right.
        rotation: largest angle, in degrees to either side; nearest pixel, corners filled with black.
        color_jitter: strength of the changes of brightness, contrast, saturation and hue.
        resize: shorter side before the central crop, as in `eval_transform`; a resized crop does not use it.
        interpolation: of resizing, and of RandAugment's params.
        rand_augment: timm's notation for RandAugment (Cubuk et al., 2020), such as ``rand-m9-mstd0.5-inc1``.
        mean: colour (0 to 1) that RandAugment fills with what comes from outside.

    Raises:
        InputError: the central square is larger than the picture it is cut from, or ``rand_augment`` is not understood.
    """
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if crop == "resized":
        mode = InterpolationMode(interpolation)
        steps.append(v2.RandomResizedCrop(image_size, scale=scale, interpolation=mode, antialias=True))
    else:
        steps.extend(_framing(image_size, resize, interpolation))
    if crop == "padded":
        steps.append(v2.RandomCrop(image_size, padding=padding))
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    steps.extend(later_changes(image_size, rotation, color_jitter, interpolation, rand_augment, mean))
    transform: Transform = v2.Compose([*steps, v2.PILToTensor()])
    return transform


def later_changes(
    image_size: int,
    rotation: float,
    color_jitter: tuple[float, float, float, float],
    interpolation: Interpolation,
    rand_augment: str | None,
    mean: Sequence[float],
) -> list[Callable[[Image.Image], Image.Image]]:
    """What `train_transform` does to a picture that has been cropped and mirrored; it says what the arguments are."""
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if rotation:
        steps.append(v2.RandomRotation(rotation, interpolation=InterpolationMode.NEAREST))
    if any(color_jitter):
        steps.append(v2.ColorJitter(*color_jitter))
    if rand_augment:
        steps.append(_rand_augment(rand_augment, image_size, interpolation, mean))
    return steps


def default_resize(image_size: int) -> int:
    """Shorter side before the central crop: 256 for 224, and in proportion."""
    return round(image_size * 256 / 224)


def _framing(
    image_size: int, resize: int | None, interpolation: Interpolation
) -> list[Callable[[Image.Image], Image.Image]]:
    shorter_side = default_resize(image_size) if resize is None else resize
    if shorter_side < image_size:
        raise InputError(f"data.resize is {resize}; it must be at least data.image_size, {image_size}")
    mode = InterpolationMode(interpolation)
    return [v2.Resize(shorter_side, interpolation=mode, antialias=True), v2.CenterCrop(image_size)]


def _rand_augment(
    notation: str, image_size: int, interpolation: Interpolation, mean: Sequence[float]
) -> Callable[[Image.Image], Image.Image]:
    # As timm sets it up for its own training: params by up to 45 % of the side, filled with the mean colour.
    settings = {
        "translate_const": int(image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
        "interpolation": PIL.Image.Resampling[interpolation.upper()],
    }
    try:
        augment: Callable[[Image.Image], Image.Image] = rand_augment_transform(notation, settings)
    except Exception as error:  # timm asserts, and converts numbers, as it reads
        raise InputError(
            f"augmentation.rand_augment is '{notation}'; it must be in timm's notation, such as rand-m9-mstd0.5-inc1"
        ) from error
    return augment
