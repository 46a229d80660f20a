"""Reads image files of all formats as upright RGB."""

import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from longtail.utils.errors import InputError, one_line

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that Pillow may read. It would try all formats otherwise, and run Ghostscript for PostScript"""

SUFFIXES = frozenset(
    [
        *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
        *(".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    ]
)
"""File name extensions of these formats"""

MAX_ASPECT = 256
"""Longer side divided by the shorter one, at most. Images are resized by their shorter side, so a line of 60,000 pixels
would take gigabytes"""

MAX_PIXELS = 178_956_970
"""Pixels of an image, at most: where Pillow raises an error, too, when it opens a file"""

LARGE = 2**24
"""Images with more pixels are decoded one at a time, whatever the number of threads: decoding takes up to 11 bytes for
each pixel"""

_turn = {"large": threading.Lock()}
if hasattr(os, "register_at_fork"):  # another thread may hold it when a worker starts
    os.register_at_fork(after_in_child=lambda: _turn.update(large=threading.Lock()))

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def is_image(path: Path) -> bool:
    """Whether a file has the extension of an image, in any case."""
    return path.suffix.lower() in SUFFIXES


def decode(path: Path) -> Image.Image:
    """Reads an image as RGB, turned upright by its EXIF orientation.

    Transparency is blended with white. More than 8 bits are scaled to 8, never clipped. Of several frames the first is
    read.

    Raises:
        InputError: the file is missing, damaged, not an image, a possible decompression bomb, or too long and thin.
    """
    with open_image(path) as image:
        return load_rgb(image)


def problem(path: Path) -> str | None:
    """Returns in a few words why an image does not decode; None if it does."""
    try:
        decode(path)
    except InputError as error:
        return _reason(path, error.__cause__)
    return None


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Opens an image file and reads its header.

    Raises:
        InputError: see `decode`; also for errors while the file is open.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # reading a pipe or a device may never end
            raise ValueError("a pipe or a device, not a file")
        with Image.open(path, formats=_formats()) as image, decoding(image):
            yield image
    except Exception as error:  # a damaged image can raise anything
        file = one_line(str(path))
        raise InputError(f"{file}: does not decode ({_reason(path, error)}); replace or remove the file") from error


@contextmanager
def decoding(image: Image.Image) -> Iterator[None]:
    """Within it, an open image of an acceptable size may be decoded. Large ones wait for their turn.

    Raises:
        ValueError: its pixels would exhaust memory, or it has none.
    """
    width, height = image.size
    if min(width, height) < 1:
        raise ValueError(f"{width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels: more than {MAX_PIXELS:,}, a possible decompression bomb")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other")
    with _turn["large"] if width * height > LARGE else nullcontext():
        yield


def load_upright(image: Image.Image) -> None:
    """Loads an open image and turns it upright."""
    image.load()
    with suppress(Exception):  # an image with a damaged EXIF entry is valid
        ImageOps.exif_transpose(image, in_place=True)


def load_rgb(image: Image.Image) -> Image.Image:
    """Loads an open image and returns it as `decode` does."""
    load_upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


@cache
def _formats() -> list[str]:
    """The formats that this version of Pillow supports."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales a grey image of 16 or 32 bits to 8 bits.

    White is 65535 for integers. For floats it is the smallest of 1, 255 and 65535 that no value exceeds. Scaling by the
    maximum instead would make dark images bright. An image with negative or larger values is scaled to its own range.
    """
    values = np.array(image, dtype=np.float32)
    finite = np.isfinite(values)
    low = float(values.min(initial=0, where=finite))
    high = float(values.max(initial=0, where=finite))
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((white for white in whites if low == 0 and high <= white), high)
    values = np.where(finite, values, low)
    return Image.fromarray(np.rint((values - low) * (255 / (white - low))).astype(np.uint8))


def _reason(path: Path, error: BaseException | None) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a supported format" if path.stat().st_size else "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
