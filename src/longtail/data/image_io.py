"""One picture file, of whatever kind, as upright red, green and blue."""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from longtail.utils.errors import InputError, one_line

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What Pillow may take a file for. It would try all kinds otherwise, and start Ghostscript for PostScript."""

MAX_ASPECT = 256
"""Longer side divided by the shorter one, above which a picture is refused: brought to the size of the others by its
shorter side, a line of 60,000 pixels would take gigabytes."""

# Up to twice Pillow's limit of 89 million pixels are taken; above, it raises an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

SUFFIXES = frozenset(
    [
        *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
        *(".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    ]
)
"""What names of pictures in the formats above end with"""


def is_image(path: Path) -> bool:
    """Whether the name ends like a picture's, in small or capital letters."""
    return path.suffix.lower() in SUFFIXES


def decode(path: Path) -> Image.Image:
    """Reads a grey, palette, CMYK, RGB or transparent picture as RGB, turned upright as its EXIF entry says.

    What is transparent becomes white, by as much as it is. More than 8 bits are brought to 8 by a factor, never
    clipped; see `_to_eight_bits`. Of several frames the first is taken.

    Raises:
        InputError: the file is absent, damaged, no picture, so large that it may be a decompression bomb, or a line.
    """
    with opened(path) as image:
        return whole(image)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """A picture of which only the header has been read; what makes it unfit is noticed here or when it is loaded.

    Raises:
        InputError: as `decode`, also for what goes wrong while it is open.
    """
    try:
        with _opened(path) as image:
            yield image
    except Exception as error:  # a damaged picture can raise anything
        where = one_line(str(path))
        raise InputError(f"{where}: does not decode ({_reason(path, error)}); mend or remove the file") from error


def whole(image: Image.Image) -> Image.Image:
    """Loads an open picture, and returns all of it as `decode` does."""
    image.load()
    # A damaged EXIF entry is no reason to refuse a sound picture.
    with suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)
    return _to_rgb(image)


def problem(path: Path) -> str | None:
    """Why a picture does not decode, in a few words; None where it does."""
    try:
        with _opened(path) as image:
            whole(image)
    except Exception as error:
        return _reason(path, error)
    return None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # to read from a pipe would be to wait for ever
        raise ValueError("not a file but a pipe or a device")
    with Image.open(path, formats=_formats()) as image:
        if max(image.size) > MAX_ASPECT * min(image.size):
            width, height = image.size
            raise ValueError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other")
        yield image


@cache
def _formats() -> list[str]:
    """Those that this Pillow has; later versions have more."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_eight_bits(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits, or of real numbers, as grey of 8 bits; black stays 0.

    White is 65535 for whole numbers, and the first of 1, 255 and 65535 that nothing exceeds for real ones: not each
    picture's own brightest pixel, which would make dark pictures bright. Only where values are negative or above
    65535, and nothing is known of the scale, does a picture's own range become 0 to 255.
    """
    values = np.array(image, dtype=np.float32)
    finite = np.isfinite(values)
    low = float(values.min(initial=0, where=finite))
    high = float(values.max(initial=0, where=finite))
    whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    white = next((white for white in whites if low == 0 and high <= white), high)
    values = np.where(finite, values, low)
    return Image.fromarray(np.rint((values - low) * (255 / (white - low))).astype(np.uint8))


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture of a known kind" if path.stat().st_size else "the file is empty"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
