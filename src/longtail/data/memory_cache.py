"""Decodes image files once and keeps them in memory. Small images are then trained on like CIFAR."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from longtail.data.image_io import CorruptImageError, decode
from longtail.data.splits import ImageSplit
from longtail.data.transforms import Transform
from longtail.utils.console import with_bar
from longtail.utils.errors import InputError, join_problems


class CorruptImagesError(InputError):
    """Images do not decode."""


def fits(num_images: int, image_size: int, gib: float) -> bool:
    """Whether images of (image_size, image_size, 3) bytes take at most ``gib`` GiB."""
    return num_images * image_size**2 * 3 <= gib * 2**30


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
    with ThreadPoolExecutor() as pool:
        walk = pool.map(fill, range(len(split)))
        errors = with_bar(walk, "decoding images", len(split))
        problems = [error for error in errors if error is not None]
    if problems:
        raise CorruptImagesError(join_problems(problems))
    return ImageSplit(split.labels, pixels)
