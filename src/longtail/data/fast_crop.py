"""Random resized crops straight from picture files, at a part of the price of torchvision's steps on PIL pictures.

The part is drawn before the file is decoded, so that a large JPEG need not be decoded in full; torch resizes bytes
several times as fast as Pillow, to within one or two of 255 levels; and colours are changed later, on the device, see
`longtail.data.color_jitter`.
Every random number is drawn by torchvision's own transforms, in their order: the same seed gives the same crop, mirror
image and changes as `longtail.data.transforms.train_transform` with resized crops does.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from longtail.data.color_jitter import NONE, draw_changes
from longtail.data.partial_decode import Box, decode_part
from longtail.data.transforms import Interpolation, Transform, later_changes


class FileCrop:
    """A picture file in, a uint8 tensor (3, S, S) out, and the changes (K, 3) of colours that it still needs.

    The arguments are those of `train_transform`, which see.
    """

    def __init__(
        self,
        image_size: int,
        scale: tuple[float, float],
        flip: bool,
        rotation: float,
        color_jitter: tuple[float, float, float, float],
        interpolation: Interpolation = "bilinear",
        rand_augment: str | None = None,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        self.draws_only_from_torch = rand_augment is None
        """Rather than also from NumPy and Python."""
        self._image_size, self._flip = image_size, flip
        self._mode = InterpolationMode(interpolation)
        self._crop = v2.RandomResizedCrop(image_size, scale=scale)
        self._jitter = v2.ColorJitter(*color_jitter) if any(color_jitter) else None
        # What else there is needs PIL pictures, and is left to PIL together with the colours, which come in between.
        self._later: Transform | None = None
        if rotation or color_jitter[3] or rand_augment:
            steps = later_changes(image_size, rotation, color_jitter, interpolation, rand_augment, mean)
            self._later = v2.Compose([v2.ToPILImage(), *steps, v2.PILToTensor()])

    def __call__(self, path: Path) -> tuple[Tensor, Tensor]:
        """One picture, with numbers from the global generators.

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
        """By torchvision, which wants to see a picture: one that takes no memory."""
        drawn = self._crop.make_params([torch.empty(1).expand(1, height, width)])
        left, top = drawn["left"], drawn["top"]
        return Box(left, top, left + drawn["width"], top + drawn["height"])
