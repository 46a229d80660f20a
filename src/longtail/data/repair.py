"""Image files with damage that costs no pixel: every viewer shows them, Pillow refuses them."""

import zlib
from io import BytesIO

from PIL import Image

JPEG_START, JPEG_SCAN, JPEG_END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"

MAX_BEFORE = 64
"""Bytes before the start of a JPEG, and bytes at its end among which the end marker must be, at most"""

KEPT_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf")
"""Chunks of a PNG that its pixels and its orientation depend on"""


def without_metadata(content: bytes) -> bytes | None:
    """Returns a PNG without damaged or large metadata, a JPEG without bytes before its start; otherwise None."""
    if content.startswith(PNG_START):
        return PNG_START + b"".join(_kept_chunks(content))
    start = content.find(JPEG_START, 0, MAX_BEFORE)
    return content[start:] if start > 0 else None


def with_end(content: bytes) -> bytes | None:
    """Returns a JPEG of which only the end marker is missing with that marker; None if pixels are missing as well."""
    # The end marker does not occur within pixels. Phones write further data after it.
    if not content.startswith(JPEG_START) or JPEG_END in content[content.rfind(JPEG_SCAN) :]:
        return None
    content = content.removesuffix(b"\xff")
    # If pixels are missing, the decoder makes them up from whatever follows.
    first, second = (content + more + JPEG_END for more in (b"", b"\x55\xaa\x33" * 64))
    return first if _pixels(first) == _pixels(second) else None


def _pixels(content: bytes) -> bytes:
    with Image.open(BytesIO(content), formats=["JPEG"]) as image:
        return image.tobytes()


def _kept_chunks(content: bytes) -> list[bytes]:
    chunks, position = [], len(PNG_START)
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        chunk = content[position : position + 12 + length]
        is_intact = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        name = chunk[4:8]
        # Damaged pixels are kept, so that they are refused.
        if name in KEPT_CHUNKS and (is_intact or name != b"eXIf"):
            chunks.append(chunk)
        position += 12 + length
    return chunks
