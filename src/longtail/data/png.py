"""Shades of PNGs of 2, 4 and 16 bits, which Pillow alone reads wrongly or in part."""

from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image

from longtail.data.levels import to_eight_bits

STEPS = {"L;2": 85, "L;4": 17}
"""Difference of grey levels after decoding, by Pillow's name of what is stored. A transparent level is not scaled"""

LOW_BYTES = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
"""Pillow keeps the high bytes of colours of 16 bits. The other order of bytes makes it keep the low ones"""

MAX_DARK = 15
"""High byte of colours that may have 12 bits or fewer, at most"""


def load_png(image: Image.Image) -> None:
    """Loads an open PNG with the right shades, except grey ones of 16 bits, which are left as they are."""
    stored = str(image.tile[0][3]) if image.tile else ""  # type: ignore[attr-defined]
    # Read before the pixels, because Pillow then closes the file.
    content, stated = (_content(image), stated_white(image)) if stored in LOW_BYTES else (b"", None)
    image.load()
    transparent = image.info.get("transparency")
    if stored in STEPS and isinstance(transparent, int):
        image.info["transparency"] = transparent * STEPS[stored]
    if stored in LOW_BYTES:
        is_dark = np.asarray(image)[..., :3].max() <= MAX_DARK
        if is_dark or transparent is not None:
            _load_sixteen_bits(image, content, LOW_BYTES[stored], stated)


def stated_white(image: Image.Image) -> float | None:
    """Returns the largest value that a PNG of 16 bits says it holds; None if it says nothing.

    The chunk sBIT has the number of significant bits. The standard wants values of fewer bits to be scaled to 16, but
    some programs write them as they are.
    """
    file: BinaryIO = image.fp  # type: ignore[attr-defined]
    before = file.tell()
    file.seek(33)  # after the header
    bits = None
    while (start := file.read(8))[4:] not in (b"IDAT", b"IEND", b""):
        content = file.read(int.from_bytes(start[:4], "big") + 4)[:-4]
        if start[4:] == b"sBIT":
            bits = max(content[:3] if len(content) >= 3 else content[:1], default=None)
    file.seek(before)
    return None if bits is None else 2.0**bits - 1


def _content(image: Image.Image) -> bytes:
    file: BinaryIO = image.fp  # type: ignore[attr-defined]
    before = file.tell()
    file.seek(0)
    content = file.read()
    file.seek(before)
    return content


def _load_sixteen_bits(image: Image.Image, content: bytes, low_bytes: str, stated: float | None) -> None:
    """Changes the pixels of a loaded PNG to those of all 16 bits."""
    with Image.open(BytesIO(content), formats=["PNG"]) as low:
        low.tile = [(*low.tile[0][:3], low_bytes)]  # type: ignore[list-item]
        values = np.array(image, dtype=np.uint16) * 256 + np.array(low)
    image.paste(Image.fromarray(to_eight_bits(values[..., :3], stated)))
    if transparent := image.info.pop("transparency", None):
        opaque = (values[..., :3] != transparent).any(axis=-1)
        image.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
