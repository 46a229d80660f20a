"""Random resized crops of image files, at a fraction of the cost of torchvision's transforms of PIL images.

- The crop is drawn before the file is decoded, so a large JPEG can be decoded at reduced resolution.
- torch resizes bytes several times as fast as Pillow, with differences of one or two of 255 levels.
- Colours are changed later, on the device, see `longtail.data.color_jitter`.

torchvision's transforms draw all random numbers in their order. So the same seed gives the same crop, flip and changes
as `longtail.data.transforms.train_transform` with a resized crop.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from longtail.data.color_jitter import NONE, draw_changes
from longtail.data.partial_decode import Box, decode_part
from longtail.data.transforms import ImageAugmentation, Transform, steps_after_flip
from longtail.utils.choices import Interpolation


class FileCrop:
    """Transform of an image file to a uint8 tensor (3, S, S) and the color changes (K, 3) that are left to the device.

    Args: see `train_transform`.
    """

    def __init__(
        self,
        image_size: int,
        augmentation: ImageAugmentation,
        interpolation: Interpolation = "bilinear",
        mean: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        self.draws_only_from_torch = augmentation.rand_augment is None
        """Not from the generators of NumPy and Python"""
        self._image_size, self._flip = image_size, augmentation.flip
        self._mode = InterpolationMode(interpolation)
        self._crop = v2.RandomResizedCrop(image_size, scale=augmentation.scale)
        jitter = augmentation.color_jitter
        self._jitter = v2.ColorJitter(*jitter) if any(jitter) else None
        # The other changes need PIL images. PIL then changes the colours too, because that step is between them.
        self._later: Transform | None = None
        for_device = replace(augmentation, rotation=0.0, rand_augment=None, auto_augment="none", cutout=0)
        if augmentation != for_device or jitter[3]:
            steps = steps_after_flip(image_size, augmentation, interpolation, mean)
            self._later = v2.Compose([v2.ToPILImage(), *steps, v2.PILToTensor()])

    def __call__(self, path: Path) -> tuple[Tensor, Tensor]:
        """Decodes and augments an image, with random numbers of the global generators.

        Raises:
            InputError: it does not decode.
        """
        part = functional.pil_to_tensor(decode_part(path, self._draw_box, self._image_size))
        size = [self._image_size, self._image_size]
        image = functional.resize(part, size, interpolation=self._mode, antialias=True)
        if self._flip and torch.rand(1) < 0.5:
            image = image.flip(-1)
        if self._later is not None:
            return self._later(image), NONE
        return image, NONE if self._jitter is None else draw_changes(self._jitter)

    def _draw_box(self, width: int, height: int) -> Box:
        # torchvision needs an image; an expanded one takes no memory.
        drawn = self._crop.make_params([torch.empty(1).expand(1, height, width)])
        left, top = drawn["left"], drawn["top"]
        return left, top, left + drawn["width"], top + drawn["height"]
