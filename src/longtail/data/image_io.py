"""Reads image files of all formats as upright RGB."""

import logging
import os
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from io import SEEK_END, BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from longtail.data.levels import to_eight_bits
from longtail.data.png import load_png, stated_white
from longtail.data.repair import JPEG_END, JPEG_START, MAX_BEFORE, with_end, without_metadata
from longtail.data.tiff import TiffSamples, is_left_to_pillow
from longtail.utils.errors import InputError, one_line
from longtail.utils.paths import is_pipe_or_device

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "WEBP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""Formats that Pillow may read. It would try all formats otherwise, and run Ghostscript for PostScript"""

SUFFIXES = frozenset(
    [
        *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe", ".jpeg"),
        *(".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    ]
)
"""File name extensions of these formats"""

HEIF_SUFFIXES = frozenset([".heic", ".heif", ".hif"])
"""Photos of phones, which need the extra ``heic``"""

HEIF_HINT = "pip install 'longtail[heic]' reads HEIC images"

KINDS = {
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    b"\x89PNG": "PNG",
    JPEG_START: "JPEG",
}
"""First bytes of formats"""

MAX_ASPECT = 256
"""Longer side divided by the shorter one, at most. Images are resized by their shorter side, so a line of 60,000 pixels
would take gigabytes"""

MAX_PIXELS = 178_956_970
"""Pixels of an image, at most: where Pillow raises an error, too, when it opens a file"""

LARGE = 2**24
"""Images with more pixels are decoded one at a time, whatever the number of threads: decoding takes up to 26 bytes for
each pixel"""

_turn = {"large": threading.Lock()}
if hasattr(os, "register_at_fork"):  # another thread may hold it when a worker starts
    os.register_at_fork(after_in_child=lambda: _turn.update(large=threading.Lock()))

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Pillow's notes on damaged metadata name no file. What costs pixels is an error.
warnings.filterwarnings("ignore", module=r"PIL\.")
for _plugin in ("TiffImagePlugin", "PngImagePlugin", "JpegImagePlugin"):
    logging.getLogger(f"PIL.{_plugin}").setLevel(logging.CRITICAL)


class CorruptImageError(InputError):
    """An image that does not decode."""

    def __init__(self, path: Path, reason: str):
        # Not "remove": a removed file changes the training images, and a run could not be resumed.
        super().__init__(f"{one_line(str(path))}: does not decode ({reason}); put an intact file in its place")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type["CorruptImageError"], tuple[Path, str]]:
        return type(self), (self.path, self.reason)


def is_image(path: Path) -> bool:
    """Whether a file has the extension of an image that can be read, in any case."""
    suffix = path.suffix.lower()
    return suffix in SUFFIXES or (suffix in HEIF_SUFFIXES and has_heif())


@cache
def has_heif() -> bool:
    """Whether the package that reads HEIC images is installed."""
    return find_spec("pillow_heif") is not None


def decode(path: Path) -> Image.Image:
    """Reads an image as RGB, turned upright by its EXIF orientation.

    Transparency is blended with white. More than 8 bits are scaled to 8, never clipped. Of several frames the first is
    read.

    Raises:
        CorruptImageError: the file is missing, damaged, no image, a possible decompression bomb, or too long and thin.
    """
    with open_image(path) as image:
        return load_rgb(image)


def problem(path: Path, header_only: bool = False) -> str | None:
    """Returns in a few words why an image does not decode; None if it does, or if its header can be read."""
    try:
        with open_image(path) as image:
            if not header_only:
                load_rgb(image)
    except CorruptImageError as error:
        return error.reason
    return None


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Opens an image file and reads its header.

    Raises:
        CorruptImageError: see `decode`; also for errors while the file is open.
    """
    try:
        if is_pipe_or_device(path):
            raise ValueError("a pipe or a device, not a file")
        with _open(path) as image, decoding(image):
            yield image
    except Exception as error:  # a damaged image can raise anything
        raise CorruptImageError(path, _reason(path, error)) from error


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
    # What the file says of its values is known before the pixels are loaded only.
    white = _stated_white(image)
    if image.format == "PNG":
        load_png(image)
    load_upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _grey_to_eight_bits(image, white)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def copied_rgb(images: Iterable[Image.Image]) -> Iterator[Image.Image]:
    """Yields images in memory as `decode` returns those of files; the given ones are not changed.

    Raises:
        InputError: an image is none of Pillow, has no pixels, or so many that they would exhaust memory.
        Exception: Pillow's error if an image cannot be loaded.
    """
    for number, image in enumerate([images] if isinstance(images, Image.Image) else images):
        if not isinstance(image, Image.Image):
            raise InputError(f"image {number} is a {type(image).__name__}; it must be an image of Pillow")
        with ExitStack() as turn:
            try:
                turn.enter_context(decoding(image))
            except ValueError as error:
                raise InputError(f"image {number}: {error}") from error
            rgb = load_rgb(image.copy())
        yield rgb


def _open(path: Path) -> Image.Image:
    """Opens an image file, without the damage that costs no pixel."""
    try:
        image = Image.open(path, formats=_formats())
    except (UnidentifiedImageError, ValueError, SyntaxError):
        with path.open("rb") as file:
            if KINDS.get(file.read(4)) == "TIFF":
                return TiffSamples(path)
        repaired = without_metadata(path.read_bytes())
        if repaired is None:
            raise
        return Image.open(BytesIO(repaired), formats=_formats())
    if image.format == "TIFF" and not is_left_to_pillow(image.tag_v2):  # type: ignore[attr-defined]
        image.close()
        return TiffSamples(path)
    if image.format == "JPEG" and _lacks_end(image):
        repaired = with_end(path.read_bytes())
        if repaired is not None:
            image.close()
            return Image.open(BytesIO(repaired), formats=_formats())
    return image


def _lacks_end(image: Image.Image) -> bool:
    """Whether the end marker of a JPEG is not among its last bytes."""
    file = image.fp  # type: ignore[attr-defined]
    position = file.tell()
    file.seek(-min(MAX_BEFORE, file.seek(0, SEEK_END)), SEEK_END)
    last = file.read()
    file.seek(position)
    return JPEG_END not in last


@cache
def _formats() -> list[str]:
    """The formats that this version of Pillow supports."""
    Image.init()
    if has_heif():
        import_module("pillow_heif").register_heif_opener()
    return [name for name in (*FORMATS, "HEIF") if name in Image.OPEN]


def _stated_white(image: Image.Image) -> float | None:
    """The largest value of a grey image of more than 8 bits that is not loaded yet, if its file says it."""
    if image.format == "PNG":
        return stated_white(image) if image.mode.startswith("I") else None
    # Pillow scales PPM and JPEG 2000 to 16 bits. The only TIFFs of more than 8 bits that are left to it have 12.
    return {"PPM": 65535, "JPEG2000": 65535, "TIFF": 4095}.get(str(image.format))


def _grey_to_eight_bits(image: Image.Image, white: float | None) -> Image.Image:
    values = np.array(image)
    scaled = to_eight_bits(values, white)
    if isinstance(transparent := image.info.get("transparency"), int):
        scaled[values == transparent] = 255
    return Image.fromarray(scaled)


def _reason(path: Path, error: BaseException | None) -> str:
    if isinstance(error, UnidentifiedImageError | SyntaxError):
        return _kind(path)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _kind(path: Path) -> str:
    """Why a file is not recognised as an image, by its first bytes."""
    with path.open("rb") as file:
        first = file.read(12)
    if not first:
        return "the file is empty"
    if first[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1") and not has_heif():
        return HEIF_HINT
    kind = next((kind for start, kind in KINDS.items() if first.startswith(start)), None)
    return f"a {kind} that is damaged or of an unsupported kind" if kind else "not an image of a supported format"
