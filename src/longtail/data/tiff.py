"""TIFFs of more than 8 bits or of many channels, which Pillow refuses or reads in wrong colours."""

import struct
from collections.abc import Mapping
from io import SEEK_END, BytesIO
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2, TiffImageFile

from longtail.data.levels import to_eight_bits

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER = 256, 257, 258, 259, 262, 266
STRIP_OFFSETS, ORIENTATION, CHANNELS, STRIP_ROWS, STRIP_SIZES, LARGEST = 273, 274, 277, 278, 279, 281
PLANES, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_SIZES = 284, 317, 322, 323, 324, 325
EXTRA, FORMAT = 338, 339
"""Tags"""

COMPRESSIONS = {1: False, 5: True, 8: True, 32773: False, 32946: True, 34925: True, 50000: True}
"""Lossless compression, and whether differences can be compressed instead of values: none, LZW, deflate, PackBits, the
older deflate, LZMA, Zstandard"""

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB = 0, 1, 2
"""Meanings of the channels that are read here"""

PREMULTIPLIED, ALPHA = 1, 2
"""Meanings of a further channel"""

KINDS = {1: "u", 2: "i", 3: "f"}
"""Formats of values"""

MAX_BYTES = 2**31
"""Of the values of an image, at most: more may be a decompression bomb"""

Tags = Mapping[int, Any]


class Layout(NamedTuple):
    """How the values of a TIFF are stored."""

    width: int
    height: int
    channels: int
    dtype: np.dtype[Any]
    photometric: int
    extra: tuple[int, ...]
    """Meanings of the channels after the colours"""

    @classmethod
    def of(cls, tags: Tags, order: str) -> "Layout":
        """Reads the tags.

        Args:
            tags: of the first image of the file.
            order: of the bytes, ``<`` or ``>``.

        Raises:
            KeyError: a tag is missing.
            ValueError: names what cannot be read.
        """
        width, height = tags[WIDTH], tags[HEIGHT]
        channels, photometric = tags.get(CHANNELS, 1), tags.get(PHOTOMETRIC, WHITE_IS_ZERO)
        bits, formats = set(tags.get(BITS, (1,))), set(tags.get(FORMAT, (1,)))
        layout = f"a TIFF of {channels} channel{'s' if channels > 1 else ''}"
        if photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB):
            raise ValueError(f"{layout} whose colours are neither grey nor RGB; save it as RGB")
        colours = 3 if photometric == RGB else 1
        if channels < colours:
            raise ValueError(f"{layout}, which is said to be RGB")
        extra = tuple(tags.get(EXTRA, ()))
        if photometric == RGB and channels == 4 and not extra:
            extra = (ALPHA,)  # what all readers assume
        if colours == 1 and channels > 2:
            raise ValueError(f"{layout}, none of which are said to be colours; save three of them as RGB")
        kind = KINDS.get(formats.pop(), "") if len(formats) == 1 else ""
        size = bits.pop() if len(bits) == 1 else 0
        if not kind or size not in (8, 16, 32, 64) or (kind, size) == ("f", 8):
            raise ValueError(f"{layout} whose values are not whole numbers or floats of 8, 16, 32 or 64 bits")
        if (compression := tags.get(COMPRESSION, 1)) not in COMPRESSIONS:
            name = COMPRESSION_INFO.get(compression, compression)
            raise ValueError(
                f"{layout} of {size} bits with compression {name}; save it with LZW or without compression"
            )
        return cls(width, height, channels, np.dtype(f"{order}{kind}{size // 8}"), photometric, extra)


def is_left_to_pillow(tags: Tags) -> bool:
    """Whether Pillow, which opened a TIFF, reads it in the right colours and shades."""
    if (photometric := tags.get(PHOTOMETRIC, WHITE_IS_ZERO)) > RGB:
        return True
    is_plain = max(tags.get(BITS, (1,))) <= 12 and set(tags.get(FORMAT, (1,))) == {1}
    return is_plain and (photometric == RGB or tags.get(CHANNELS, 1) == 1)


class TiffSamples(ImageFile.ImageFile):
    """A TIFF that is opened like other images: its pixels are read by ``load``, as L, LA, RGB or RGBA.

    Raises:
        ValueError: the file cannot be read in full and in the right colours; says why.
    """

    format = "TIFF"
    format_description = "TIFF of many bits or channels"

    def _open(self) -> None:
        assert self.fp is not None
        header = self.fp.read(8)
        header += self.fp.read(8) if header[2] == 43 else b""  # BigTIFF
        self.tags = ImageFileDirectory_v2(header)
        self.fp.seek(self.tags.next)
        self.tags.load(self.fp)
        self.order = "<" if header.startswith(b"II") else ">"
        self.layout = Layout.of(self.tags, self.order)
        self._size = self.layout.width, self.layout.height
        self._mode = "RGB"
        self.is_read = False

    def load(self) -> Any:
        """Reads the pixels, once."""
        if not self.is_read:
            assert self.fp is not None
            self.fp.seek(0)
            values = read_values(BytesIO(self.fp.read()), self.tags, self.layout, self.order)
            image = to_image(values, self.layout, self.tags.get(LARGEST))
            self.im, self._mode, self.is_read = image.im, image.mode, True
            self.getexif()[ORIENTATION] = self.tags.get(ORIENTATION, 1)
        return Image.Image.load(self)


def to_image(values: NDArray[Any], layout: Layout, largest: Any) -> Image.Image:
    """Returns the colours, with alpha if the TIFF has it. Other channels after the colours are not shown by any viewer.

    Args:
        values: (H, W, channels).
        layout: of the TIFF.
        largest: value of each channel that the file states, if any.
    """
    num_colours = 3 if layout.photometric == RGB else 1
    shades = to_eight_bits(values[..., :num_colours], max(largest) if isinstance(largest, tuple) else largest)
    if layout.photometric == WHITE_IS_ZERO:
        shades = 255 - shades
    if layout.extra and layout.extra[0] in (PREMULTIPLIED, ALPHA):
        alpha = to_eight_bits(values[..., num_colours : num_colours + 1], stated=np.inf)
        if layout.extra[0] == PREMULTIPLIED:
            shades = np.minimum((shades * np.uint16(255) + alpha // 2) // np.maximum(alpha, 1), 255).astype(np.uint8)
        shades = np.concatenate([shades, alpha], axis=-1)
    return Image.fromarray(shades[..., 0] if shades.shape[-1] == 1 else shades)


def read_values(file: BytesIO, tags: Tags, layout: Layout, order: str) -> NDArray[Any]:
    """Returns the values: (H, W, channels).

    Pillow decompresses the file, which is described to it as a grey image with a pixel for each byte.

    Args:
        file: is changed.
        tags: of the image.
        layout: of the image.
        order: of the bytes, ``<`` or ``>``.

    Raises:
        ValueError: pixels are missing, or they would exhaust memory.
    """
    num_planes = layout.channels if tags.get(PLANES) == 2 else 1
    channels = layout.channels // num_planes
    width = tags.get(TILE_WIDTH, layout.width)
    num_across = -(-layout.width // width)
    row = width * channels * layout.dtype.itemsize
    if num_across * row * layout.height * num_planes > MAX_BYTES:
        raise ValueError(f"its values take more than {MAX_BYTES:,} bytes, a possible decompression bomb")
    entries = {WIDTH: num_across * row, HEIGHT: layout.height, BITS: 8, PHOTOMETRIC: BLACK_IS_ZERO, CHANNELS: 1}
    entries |= {COMPRESSION: tags.get(COMPRESSION, 1), FILL_ORDER: tags.get(FILL_ORDER, 1)}
    if TILE_WIDTH in tags:
        entries |= {TILE_WIDTH: row, TILE_HEIGHT: tags[TILE_HEIGHT]}
    else:
        entries |= {STRIP_ROWS: min(tags.get(STRIP_ROWS, layout.height), layout.height)}
    predictor = tags.get(PREDICTOR, 1) if COMPRESSIONS[entries[COMPRESSION]] else 1
    offsets, sizes = (TILE_OFFSETS, TILE_SIZES) if TILE_WIDTH in tags else (STRIP_OFFSETS, STRIP_SIZES)
    if not (offsets in tags and sizes in tags):
        raise ValueError("the file does not say where its pixels are")
    end = file.seek(0, SEEK_END)
    is_short = entries[COMPRESSION] == 1 and sum(tags[sizes]) < layout.height * num_across * row * num_planes
    if is_short or any(offset + size > end for offset, size in zip(tags[offsets], tags[sizes], strict=False)):
        raise ValueError("image file is truncated")
    planes = []
    for plane in range(num_planes):
        for tag in (offsets, sizes):
            num_parts = len(tags[tag]) // num_planes
            entries[tag] = tags[tag][plane * num_parts : (plane + 1) * num_parts]
        write_tags(file, order, entries)
        # Image.open would count the bytes as pixels, and refuse too many.
        with TiffImageFile(file) as image:
            rows = np.asarray(image).reshape(layout.height, num_across, row)
        values = undo_predictor(rows, predictor, channels, layout.dtype)
        planes.append(values.reshape(layout.height, -1, channels)[:, : layout.width])
    return np.concatenate(planes, axis=-1) if num_planes > 1 else planes[0]


def write_tags(file: BytesIO, order: str, entries: Mapping[int, int | tuple[int, ...]]) -> None:
    """Appends tags to a TIFF, and makes its header lead to them. What the header led to before is of no account.

    Args:
        file: of the TIFF. The header of a BigTIFF is longer, but nothing that the tags lead to lies in it.
        order: of the bytes, ``<`` or ``>``.
        entries: values of the tags, as whole numbers of 32 bits.
    """
    start = -(-file.seek(0, SEEK_END) // 2) * 2
    further = start + 2 + 12 * len(entries) + 4
    directory, lists = struct.pack(f"{order}H", len(entries)), b""
    for tag, entry in sorted(entries.items()):
        values = entry if isinstance(entry, tuple) else (entry,)
        packed = struct.pack(f"{order}{len(values)}I", *values)
        directory += struct.pack(f"{order}HHI", tag, 4, len(values))
        directory += packed if len(values) == 1 else struct.pack(f"{order}I", further + len(lists))
        lists += packed if len(values) > 1 else b""
    file.seek(start)
    file.write(directory + bytes(4) + lists)
    file.seek(0)
    file.write(struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, start))
    file.seek(0)


def undo_predictor(rows: NDArray[np.uint8], predictor: int, channels: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Returns the values of decompressed bytes.

    Source: TIFF 6.0, section 14, and the Adobe Photoshop TIFF technical note 3 for floats.

    Args:
        rows: (H, tiles across, bytes of a row of a tile).
        predictor: 1 for none, 2 for differences of neighbours, 3 for differences of the sorted bytes of floats.
        channels: that lie side by side.
        dtype: of the values.

    Raises:
        ValueError: the predictor is unknown.
    """
    rows = np.ascontiguousarray(rows)
    if predictor == 1:
        return rows.view(dtype)
    if predictor == 2:
        integers = rows.view(f"{dtype.byteorder}u{dtype.itemsize}").reshape(*rows.shape[:2], -1, channels)
        native = integers.dtype.newbyteorder("=")
        return np.cumsum(integers, axis=2, dtype=native).view(dtype.newbyteorder("="))
    if predictor == 3 and dtype.kind == "f":
        sums = np.cumsum(rows.reshape(*rows.shape[:2], -1, channels), axis=2, dtype=np.uint8)
        by_significance = sums.reshape(*rows.shape[:2], dtype.itemsize, -1)
        return np.ascontiguousarray(by_significance.swapaxes(-1, -2)).view(dtype.newbyteorder(">"))
    raise ValueError(f"a TIFF with predictor {predictor}")
