"""PNG and TIFF files of kinds that Pillow cannot write, byte by byte."""

import struct
import zlib

import numpy as np


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(rows: np.ndarray, depth: int, colour: int, *more: bytes) -> bytes:
    """A PNG of (H, W) or (H, W, channels) numbers of ``depth`` bits; colour 0 is grey, 2 RGB, 4 grey with alpha."""
    height, width = rows.shape[:2]
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = [[f"{int(value):0{depth}b}" for value in row.ravel()] for row in rows]
        lines = [
            bytes(int("".join(row)[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(row) * depth, 8)) for row in bits
        ]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + data + chunk(b"IEND", b"")


def tiff(pixels: np.ndarray, photometric: int, *, planar: int = 1, extra: dict[int, object] | None = None) -> bytes:
    """A TIFF of pixels (H, W) or (H, W, channels), or (channels, H, W) if ``planar`` is 2.

    ``extra`` has further tags. With 259, which is 1, the pixels are not compressed; with 8, they are deflated.
    """
    channels = 1 if pixels.ndim == 2 else pixels.shape[0 if planar == 2 else 2]
    height, width = pixels.shape[-2:] if planar == 2 or pixels.ndim == 2 else pixels.shape[:2]
    extra = extra or {}
    planes = pixels.astype(pixels.dtype.newbyteorder("<"))
    data = [plane.tobytes() for plane in (planes if planar == 2 else [planes])]
    data = [zlib.compress(plane) for plane in data] if extra.get(259) == 8 else data
    sizes = [len(plane) for plane in data]
    kind, bits = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind], 8 * pixels.dtype.itemsize
    tags = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [photometric]}
    tags |= {273: [0] * len(data), 277: [channels], 278: [height], 279: sizes, 284: [planar], 339: [kind] * channels}
    tags |= {tag: value if isinstance(value, list) else [value] for tag, value in extra.items()}
    start = 8 + 2 + 12 * len(tags) + 4
    tail, entries = b"", b""
    start_of_data = start + sum(4 * len(values) for values in tags.values() if len(values) > 1)
    tags[273] = [start_of_data + sum(sizes[:strip]) for strip in range(len(data))]
    for tag, values in sorted(tags.items()):
        if len(values) == 1:
            entries += struct.pack("<HHII", tag, 4, 1, values[0])
        else:
            entries += struct.pack("<HHII", tag, 4, len(values), start + len(tail))
            tail += struct.pack(f"<{len(values)}I", *values)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + b"\0" * 4 + tail + b"".join(data)
