"""Small pictures of test images, as text that a page can hold."""

import base64
import os
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from PIL import Image, features

from longtail.data.image_io import CorruptImageError
from longtail.data.partial_decode import decode_part
from longtail.data.splits import ImageSplit

SIDE = 144
"""Longer side of a picture, pixels"""

SMALL = 64
"""Images up to this side are kept exactly, and shown with sharp pixels"""

MAX_BYTES = 9_000
"""Of a picture, at most; a larger one is encoded again with less quality"""

QUALITIES = (72, 45, 20)


class Picture(NamedTuple):
    """A picture for an ``img`` element."""

    source: str
    """data: address"""
    width: int
    height: int
    is_small: bool
    """Whether it is shown with sharp pixels"""


class Pictures:
    """Makes pictures of the images of a split.

    Args:
        images: of the split; None: they cannot be read, and there are no pictures.
        root: folder from which paths are written.
    """

    def __init__(self, images: ImageSplit | None, root: Path):
        self.images, self.root = images, root
        self._made: dict[int, Picture | None] = {}

    def picture(self, position: int) -> Picture | None:
        """Returns the picture of an image; None if it cannot be read."""
        if position not in self._made:
            self._made[position] = self._make(position)
        return self._made[position]

    def name(self, position: int) -> str:
        """Returns the path of an image from the root, or its position if the images are no files."""
        if self.images is None or self.images.paths is None:
            return f"test image {position}"
        return os.path.relpath(self.images.paths[position], self.root)

    def _make(self, position: int) -> Picture | None:
        if self.images is None:
            return None
        if self.images.pixels is not None:
            image = Image.fromarray(self.images.pixels[position])
        else:
            assert self.images.paths is not None
            try:
                image = decode_part(self.images.paths[position], lambda width, height: (0, 0, width, height), SIDE)
            except CorruptImageError:
                return None
        is_small = max(image.size) <= SMALL
        image.thumbnail((SIDE, SIDE))
        kind, content = _encode(image, is_small)
        return Picture(f"data:image/{kind};base64,{base64.b64encode(content).decode()}", *image.size, is_small)


def _encode(image: Image.Image, is_small: bool) -> tuple[str, bytes]:
    kind = "webp" if features.check("webp") else "jpeg"
    if is_small and kind == "webp":
        return kind, _bytes(image, kind, lossless=True)
    content = b""
    for quality in QUALITIES:
        content = _bytes(image, kind, quality=quality)
        if len(content) <= MAX_BYTES:
            break
    return kind, content


def _bytes(image: Image.Image, kind: str, **options: int) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
