"""A part of a picture file, decoded no finer than it needs to be.

libjpeg can give a JPEG at a half, a quarter or an eighth of its size, and leaves out the work for the rest. That is the
same picture less its finest detail, which bringing a large part to a small size would take away as well.
"""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from PIL import ExifTags, Image

from longtail.data.image_io import opened, whole

REDUCTIONS = (8, 4, 2)
"""What libjpeg divides both sides by, as far as Pillow asks for it."""

JPEGS = ("JPEG", "MPO")
"""MPO: a JPEG with others behind it, as phones and stereo cameras make them."""


class Box(NamedTuple):
    """A part of a picture: its edges, in pixels from the left and from the top."""

    left: int
    top: int
    right: int
    bottom: int


Choose = Callable[[int, int], Box]
"""Width and height of an upright picture -> the part that is wanted."""


def decode_part(path: Path, choose: Choose, least: int) -> Image.Image:
    """The part that ``choose`` picks, as RGB and upright, each side at least as long as in the file or as ``least``.

    Like cropping what `longtail.data.image_io.decode` returns, but for large parts of JPEGs: those are smaller by one
    of `REDUCTIONS`, and their edges are moved by at most half a pixel of the smaller picture, to lie between two.

    Args:
        path: of the file.
        choose: is called once, with the size of the whole picture, before it is decoded.
        least: pixels that each side keeps where it had them.

    Raises:
        InputError: as `decode`.
    """
    with opened(path) as image:
        # Colours that need converting are converted as a whole, because some depend on the whole picture.
        if image.format not in JPEGS or image.mode not in ("L", "RGB"):
            picture = whole(image)
            return picture.crop(choose(*picture.size))
        turn = _turn(image)
        box = _before(turn, choose(*_turned_size(turn, image.size)), image.size)
        part = image.crop(_reduced(box, _reduce(image, reduction(box, least))))
        part = part if turn is None else part.transpose(turn)
        return part if part.mode == "RGB" else part.convert("RGB")


def reduction(box: Box, least: int) -> int:
    """The largest reduction that leaves each side of a part ``least`` pixels; 1 where none does."""
    shorter = min(box.right - box.left, box.bottom - box.top)
    return next((factor for factor in REDUCTIONS if shorter >= factor * least), 1)


def _reduce(image: Image.Image, factor: int) -> int:
    """Has a JPEG decoded smaller by a factor, if that can be; returns by which one it will be."""
    if factor == 1:
        return 1
    width, height = image.size
    answer = image.draft(None, (width // factor, height // factor))
    return 1 if answer is None else round(width / answer[1][2])


def _reduced(box: Box, factor: int) -> Box:
    # Rounding both edges alike, by a floor, keeps a side that is `factor * least` long at `least`.
    return Box(*((edge + factor // 2) // factor for edge in box))


# ---- orientation ----

# What turns a stored picture upright, by its EXIF entry.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Each is an exchange of rows and columns or none, after mirroring across, down, both or neither.
_EXCHANGED = (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
_MIRRORED_ACROSS = (_TURNS[2], _TURNS[3], _TURNS[7], _TURNS[8])
_MIRRORED_DOWN = (_TURNS[3], _TURNS[4], _TURNS[6], _TURNS[7])


def _turn(image: Image.Image) -> Image.Transpose | None:
    # A damaged EXIF entry is no reason to refuse a sound picture.
    with suppress(Exception):
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return None


def _turned_size(turn: Image.Transpose | None, size: tuple[int, int]) -> tuple[int, int]:
    return (size[1], size[0]) if turn in _EXCHANGED else size


def _before(turn: Image.Transpose | None, box: Box, size: tuple[int, int]) -> Box:
    """Where a part of the upright picture lies in the stored one of this size."""
    left, top, right, bottom = box
    if turn in _EXCHANGED:
        left, top, right, bottom = top, left, bottom, right
    if turn in _MIRRORED_ACROSS:
        left, right = size[0] - right, size[0] - left
    if turn in _MIRRORED_DOWN:
        top, bottom = size[1] - bottom, size[1] - top
    return Box(left, top, right, bottom)
