"""Reads every image of a data set once, and keeps of it what the checks need."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.data.check.near_copies import SIDE
from longtail.data.copies import AllImages, digest
from longtail.data.image_io import CorruptImageError, decode
from longtail.utils.console import with_bar
from longtail.utils.threads import map_in_threads


class ImageFacts(NamedTuple):
    """What is known about a decoded image."""

    width: int
    """Pixels"""
    height: int
    """Pixels"""
    digest: bytes
    """Equal for images with the same pixels"""
    thumbnail: NDArray[np.uint8]
    """(SIDE, SIDE, 3), RGB"""


def read_images(images: AllImages) -> list[ImageFacts | str]:
    """Returns the facts about N images, or why they do not decode. Files are read in threads, each once."""
    paths = images.paths
    if paths is None:
        splits = images.dataset.splits.values()
        pixels = [row for split in splits if split.pixels is not None for row in split.pixels]
        return list(_walk(pixels))
    files = list(dict.fromkeys(paths))
    facts = dict(zip(files, _walk(files), strict=True))
    return [facts[path] for path in paths]


def _walk(images: list[Path] | list[NDArray[np.uint8]]) -> Iterator[ImageFacts | str]:
    return iter(with_bar(map_in_threads(_facts, images), "reading images", len(images)))


def _facts(source: Path | NDArray[np.uint8]) -> ImageFacts | str:
    try:
        image = decode(source) if isinstance(source, Path) else Image.fromarray(source)
    except CorruptImageError as error:
        return error.reason
    size = f"{image.width} {image.height} ".encode()
    thumbnail = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return ImageFacts(image.width, image.height, digest(size + image.tobytes()), np.asarray(thumbnail))
