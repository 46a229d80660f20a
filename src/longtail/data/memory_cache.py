"""Decodes image files once and keeps them in memory. Small images are then trained on like CIFAR."""

import numpy as np
from PIL import Image

from longtail.data.image_io import CorruptImageError, decode
from longtail.data.splits import ImageSplit
from longtail.data.transforms import Transform
from longtail.utils.console import with_bar
from longtail.utils.errors import InputError, join_problems
from longtail.utils.threads import map_in_threads


class CorruptImagesError(InputError):
    """Images do not decode."""


def decode_all(split: ImageSplit, transform: Transform) -> ImageSplit:
    """Returns the images decoded and transformed: pixels (N, S, S, 3) instead of paths.

    ``transform`` must not be random, because it runs in threads, in any order.

    Raises:
        CorruptImagesError: lists the images that do not decode.
    """
    paths = split.paths
    assert paths is not None
    _, height, width = transform(Image.new("RGB", (1, 1))).shape
    pixels = np.empty((len(split), height, width, 3), dtype=np.uint8)

    def fill(position: int) -> str | None:
        try:
            pixels[position] = transform(decode(paths[position])).permute(1, 2, 0).numpy()
        except CorruptImageError as error:
            return str(error)
        return None

    # Threads, not processes: decoding and resizing release Python's lock, and nothing has to be copied.
    errors = with_bar(map_in_threads(fill, range(len(split))), "decoding images", len(split))
    problems = [error for error in errors if error is not None]
    if problems:
        raise CorruptImagesError(join_problems(problems))
    return ImageSplit(split.labels, pixels)
