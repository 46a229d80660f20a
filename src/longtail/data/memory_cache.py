"""Picture files decoded once and kept in memory: small ones are then trained on as CIFAR is."""

import logging
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from PIL import Image

from longtail.data.image_io import decode
from longtail.data.splits import ImageSplit
from longtail.data.transforms import Transform
from longtail.utils.errors import InputError, raise_all

T = TypeVar("T")
logger = logging.getLogger(__name__)

FIRST_WORD, BETWEEN = 5.0, 30.0
"""Seconds until, and then between, lines that say how far decoding is"""


def fits(num_images: int, image_size: int, gib: float) -> bool:
    """Whether images of (image_size, image_size, 3) bytes take at most ``gib`` GiB of memory."""
    return num_images * image_size**2 * 3 <= gib * 2**30


def decode_all(split: ImageSplit, transform: Transform) -> ImageSplit:
    """The same images, decoded and framed: pixels (N, S, S, 3) in place of paths.

    ``transform`` must not be random: it runs in several threads, in no certain order.

    Raises:
        InputError: pictures do not decode, each on a line of its own.
    """
    paths = split.paths
    assert paths is not None
    _, height, width = transform(Image.new("RGB", (1, 1))).shape
    pixels = np.empty((len(split), height, width, 3), dtype=np.uint8)

    def fill(position: int) -> InputError | None:
        try:
            pixels[position] = transform(decode(paths[position])).permute(1, 2, 0).numpy()
        except InputError as error:
            return error
        return None

    # Decoding and resizing let go of Python's lock, so threads do: nothing has to be sent between processes.
    with ThreadPoolExecutor() as pool:
        raise_all([str(error) for error in _told(pool.map(fill, range(len(split))), len(split)) if error])
    return ImageSplit(split.labels, pixels)


def _told(walk: Iterable[T], total: int) -> Iterator[T]:
    """The same, with a line now and then of how far it is: large photographs take minutes."""
    due = time.monotonic() + FIRST_WORD
    for done, item in enumerate(walk, start=1):
        yield item
        if time.monotonic() > due:
            logger.info("%s of %s pictures decoded, to be kept in memory", f"{done:,}", f"{total:,}")
            due = time.monotonic() + BETWEEN
