"""Decodes a part of an image file, at reduced resolution if possible.

libjpeg can decode a JPEG at a half, a quarter or an eighth of its size, in a fraction of the time. This loses only the
detail that resizing a large part to a small image would remove as well.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from PIL import ExifTags, Image

from longtail.data.image_io import load_rgb, load_upright, open_image

REDUCTIONS = (8, 4, 2)
"""Factors by which libjpeg, as used by Pillow, reduces both sides"""

JPEGS = ("JPEG", "MPO")
"""MPO is a JPEG followed by others, written by phones and stereo cameras"""


Box = tuple[int, int, int, int]
"""A part of an image: its left, upper, right and lower edge, in pixels from the left and from the top"""


def decode_part(path: Path, choose: Callable[[int, int], Box], min_size: int) -> Image.Image:
    """Reads a part of an image as RGB, upright.

    Equals a crop of `longtail.data.image_io.decode` except for large parts of JPEGs: these are smaller by one of
    `REDUCTIONS`, and their edges are rounded to pixels of the smaller image.

    Args:
        path: of the file.
        choose: called once with the width and height of the upright image, before it is decoded; returns the part.
        min_size: no side is reduced below this number of pixels.

    Raises:
        InputError: see `decode`.
    """
    with open_image(path) as image:
        # Other modes are converted before cropping, because colours can depend on the full image.
        if image.format not in JPEGS or image.mode not in ("L", "RGB"):
            rgb = load_rgb(image)
            return rgb.crop(choose(*rgb.size))
        width, height = image.size
        box = choose(height, width) if _is_turned(image) else choose(width, height)
        factor = reduction(box, min_size)
        if factor > 1:
            draft = image.draft(None, (width // factor, height // factor))
            factor = round(width / draft[1][2]) if draft else 1
        load_upright(image)
        # Both edges of a side are rounded down, so that a side of factor * min_size pixels becomes min_size.
        left, top, right, bottom = ((edge + factor // 2) // factor for edge in box)
        part = image.crop((left, top, right, bottom))
        return part if part.mode == "RGB" else part.convert("RGB")


def reduction(box: Box, min_size: int) -> int:
    """Returns the largest reduction that leaves ``min_size`` pixels of each side of a part, or 1."""
    left, top, right, bottom = box
    shorter = min(right - left, bottom - top)
    return next((factor for factor in REDUCTIONS if shorter >= factor * min_size), 1)


def _is_turned(image: Image.Image) -> bool:
    """Whether the upright image has the sides of the stored one exchanged."""
    with suppress(Exception):  # an image with a damaged EXIF entry is valid
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    return False
