"""Transforms of one image: a PIL image to a uint8 tensor (3, S, S). Normalisation follows on the device, by batch.

Random transforms draw from the global generators of torch; RandAugment draws from those of Python and NumPy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, InterpolationMode, v2

from longtail.data.central_crop import crop_centre, resize_shorter
from longtail.utils.choices import Crop, Interpolation, Policy
from longtail.utils.errors import InputError

Transform = Callable[[Image.Image], Tensor]
Step = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class ImageAugmentation:
    """Random changes to an image, in this order. RIDE's changes come first, in its order."""

    crop: Crop = "none"
    """resized: a random part. padded: the test image, shifted by up to ``padding`` pixels and filled with black"""

    padding: int = 0
    """Of a padded crop, pixels"""

    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of a resized crop, as fractions of the image"""

    flip: bool = False
    """Mirror half of the images"""

    rotation: float = 0.0
    """Largest angle in degrees, in both directions; nearest neighbour, corners filled with black"""

    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Strength of changes to brightness, contrast, saturation and hue"""

    rand_augment: str | None = None
    """RandAugment (Cubuk et al., 2020) in timm's notation, such as ``rand-m9-mstd0.5-inc1``"""

    auto_augment: Policy = "none"
    """Policy of AutoAugment (Cubuk et al., 2019)"""

    cutout: int = 0
    """Cutout (DeVries & Taylor, 2017): side of a square that is filled with black, pixels; 0: none"""


def eval_transform(image_size: int, resize: int | None, interpolation: Interpolation = "bilinear") -> Transform:
    """Returns the transform of test images: resize the shorter side to ``resize``, then crop the centre.

    Args:
        image_size: height and width of the crop, pixels.
        resize: pixels; by default `default_resize`.
        interpolation: of resizing.

    Raises:
        InputError: ``resize`` is smaller than ``image_size``.
    """
    transform: Transform = v2.Compose([*_central_crop(image_size, resize, interpolation), v2.PILToTensor()])
    return transform


def train_transform(
    image_size: int,
    augmentation: ImageAugmentation,
    resize: int | None = None,
    interpolation: Interpolation = "bilinear",
    mean: Sequence[float] = (0.5, 0.5, 0.5),
) -> Transform:
    """Returns the transform of training images.

    Args:
        image_size: height and width of the result S, pixels.
        augmentation: random changes.
        resize: see `eval_transform`; not used by resized crops.
        interpolation: of resizing and of RandAugment.
        mean: colour (0 to 1) that RandAugment fills with.

    Raises:
        InputError: ``resize`` is smaller than ``image_size``, or timm does not understand ``rand_augment``.
    """
    steps: list[Step] = []
    if augmentation.crop == "resized":
        mode = InterpolationMode(interpolation)
        steps.append(v2.RandomResizedCrop(image_size, scale=augmentation.scale, interpolation=mode, antialias=True))
    else:
        steps.extend(_central_crop(image_size, resize, interpolation))
    if augmentation.crop == "padded":
        steps.append(v2.RandomCrop(image_size, padding=augmentation.padding))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip())
    steps.extend(steps_after_flip(image_size, augmentation, interpolation, mean))
    transform: Transform = v2.Compose([*steps, v2.PILToTensor()])
    return transform


def steps_after_flip(
    image_size: int, augmentation: ImageAugmentation, interpolation: Interpolation, mean: Sequence[float]
) -> list[Step]:
    """Returns the steps of `train_transform` after crop and flip."""
    steps: list[Step] = []
    if augmentation.rotation:
        steps.append(v2.RandomRotation(augmentation.rotation, interpolation=InterpolationMode.NEAREST))
    if any(augmentation.color_jitter):
        steps.append(v2.ColorJitter(*augmentation.color_jitter))
    if augmentation.rand_augment:
        steps.append(_rand_augment(augmentation.rand_augment, image_size, interpolation, mean))
    if augmentation.auto_augment != "none":
        steps.append(v2.AutoAugment(AutoAugmentPolicy(augmentation.auto_augment)))
    if augmentation.cutout:
        steps.append(Cutout(augmentation.cutout))
    return steps


class Cutout:
    """Fills a square with black, as far as it is inside the image: DeVries & Taylor, 2017, section 3.2.

    The centre is uniform over the image. Draws from torch's global generator.

    Args:
        length: of the sides, pixels.
    """

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, image: Image.Image) -> Image.Image:
        """Returns a changed copy."""
        left, top = (int(torch.randint(side, ())) - self._length // 2 for side in image.size)
        result = image.copy()
        result.paste((0, 0, 0), (left, top, left + self._length, top + self._length))
        return result


def default_resize(image_size: int) -> int:
    """Returns the shorter side before the central crop: 256 for 224, and in proportion."""
    return round(image_size * 256 / 224)


def _central_crop(image_size: int, resize: int | None, interpolation: Interpolation) -> list[Step]:
    shorter_side = default_resize(image_size) if resize is None else resize
    if shorter_side < image_size:
        raise InputError(f"data.resize is {resize}; it must be at least data.image_size, {image_size}")
    return [
        partial(resize_shorter, side=shorter_side, interpolation=interpolation),
        partial(crop_centre, side=image_size),
    ]


def _rand_augment(notation: str, image_size: int, interpolation: Interpolation, mean: Sequence[float]) -> Step:
    # timm's own settings for training: shifts by up to 45 % of the side.
    settings = {
        "translate_const": int(image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
        "interpolation": Image.Resampling[interpolation.upper()],
    }
    try:
        augment: Step = rand_augment_transform(notation, settings)
    except Exception as error:  # timm asserts, and converts numbers, as it reads
        raise InputError(
            f"augmentation.rand_augment is '{notation}'; it must be in timm's notation, such as rand-m9-mstd0.5-inc1"
        ) from error
    return augment
