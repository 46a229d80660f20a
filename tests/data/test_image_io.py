"""Image files of all formats and modes, compared with expected colours and shapes."""

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers.raw_images import chunk, png, tiff
from PIL import ExifTags, Image

from longtail.data import image_io, levels
from longtail.data.image_io import FORMATS, SUFFIXES, decode, is_image
from longtail.utils.errors import InputError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def row_image(mode: str, *pixels) -> Image.Image:
    """An image with one row."""
    image = Image.new(mode, (len(pixels), 1))
    for column, value in enumerate(pixels):
        image.putpixel((column, 0), value)
    return image


def palette_image(*colours) -> Image.Image:
    """A palette image with one row, which shows each colour once."""
    image = row_image("P", *range(len(colours)))
    image.putpalette([value for colour in colours for value in colour])
    return image


def decoded(image: Image.Image, path: Path, **options) -> np.ndarray:
    """Saves an image and returns the decoded file: (H, W, 3)."""
    image.save(path, **options)
    result = decode(path)
    assert result.mode == "RGB"
    return np.array(result)


# ---- colours ----


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm", "gif"])
def test_lossless_rgb_is_exact(tmp_path, suffix):
    row = decoded(row_image("RGB", RED, GREEN, BLUE, WHITE, BLACK), tmp_path / f"a.{suffix}")[0]
    np.testing.assert_array_equal(row, [RED, GREEN, BLUE, WHITE, BLACK])


def test_lossy_rgb_is_close(tmp_path):
    for suffix in ("jpg", "webp"):
        pixels = decoded(Image.new("RGB", (16, 16), (200, 60, 20)), tmp_path / f"a.{suffix}", quality=95)
        assert pixels.shape == (16, 16, 3)
        np.testing.assert_allclose(pixels, np.broadcast_to((200, 60, 20), pixels.shape), atol=4)


def test_grey_and_bilevel(tmp_path):
    np.testing.assert_array_equal(
        decoded(row_image("L", 0, 100, 255), tmp_path / "grey.png")[0], [BLACK, (100,) * 3, WHITE]
    )
    np.testing.assert_array_equal(decoded(row_image("1", 0, 1), tmp_path / "bits.png")[0], [BLACK, WHITE])


def test_palette(tmp_path):
    colours = [(10, 20, 30), RED, (0, 128, 255)]
    for suffix in ("png", "gif", "bmp"):
        np.testing.assert_array_equal(decoded(palette_image(*colours), tmp_path / f"a.{suffix}")[0], colours)


def test_cmyk(tmp_path):
    inks = (51, 102, 0, 25)
    expected = [round(255 * (1 - ink / 255) * (1 - inks[3] / 255)) for ink in inks[:3]]
    image = Image.new("CMYK", (16, 16), inks)
    np.testing.assert_allclose(decoded(image, tmp_path / "a.tif")[3, 5], expected, atol=1)
    np.testing.assert_allclose(decoded(image, tmp_path / "a.jpg", quality=95)[3, 5], expected, atol=4)


# ---- transparency ----


def test_transparency_is_blended_with_white(tmp_path):
    image = row_image("RGBA", (*BLUE, 255), (*BLUE, 0), (0, 0, 200, 51))
    row = decoded(image, tmp_path / "a.png")[0]
    np.testing.assert_array_equal(row[:2], [BLUE, WHITE])
    np.testing.assert_allclose(row[2], [0.8 * 255, 0.8 * 255, 0.8 * 255 + 0.2 * 200], atol=1)


def test_transparent_grey(tmp_path):
    row = decoded(row_image("LA", (0, 255), (0, 0), (100, 51)), tmp_path / "a.png")[0]
    np.testing.assert_array_equal(row[:2], [BLACK, WHITE])
    np.testing.assert_allclose(row[2], (0.8 * 255 + 0.2 * 100,) * 3, atol=1)


def test_palette_with_one_transparent_colour(tmp_path):
    for suffix in ("png", "gif"):
        row = decoded(palette_image(RED, GREEN, BLUE), tmp_path / f"a.{suffix}", transparency=1)[0]
        np.testing.assert_array_equal(row, [RED, WHITE, BLUE])


def test_palette_with_partial_transparency(tmp_path):
    row = decoded(palette_image(RED, GREEN, BLACK), tmp_path / "a.png", transparency=bytes([255, 0, 51]))[0]
    np.testing.assert_array_equal(row[:2], [RED, WHITE])
    np.testing.assert_allclose(row[2], (0.8 * 255,) * 3, atol=1)


def test_one_transparent_colour_without_a_palette(tmp_path):
    grey = decoded(row_image("L", 7, 8), tmp_path / "grey.png", transparency=7)[0]
    np.testing.assert_array_equal(grey, [WHITE, (8, 8, 8)])
    rgb = decoded(row_image("RGB", RED, BLUE), tmp_path / "rgb.png", transparency=RED)[0]
    np.testing.assert_array_equal(rgb, [WHITE, BLUE])


# ---- more than 8 bits ----


def gradient(dtype, largest: float = 65535) -> np.ndarray:
    """(2, 16), 16 evenly spaced levels."""
    return np.linspace(0, largest, 16).astype(dtype)[None].repeat(2, axis=0)


SHADES = np.arange(16) * 17


@pytest.mark.parametrize(
    ("suffix", "values", "mode"),
    [
        ("png", gradient(np.uint16), "I;16"),
        ("tif", gradient(np.uint16), "I;16"),
        ("tif", gradient(np.int32), "I"),
        ("tif", gradient(np.int32, 15_000_000), "I"),
        ("tif", gradient(np.float32, 1), "F"),
        ("tif", gradient(np.float32, 255), "F"),
        ("tif", gradient(np.float32, 65535), "F"),
        ("tif", gradient(np.float32, 1e7), "F"),
        ("tif", gradient(np.float32, 3000) - 1500, "F"),
    ],
)
def test_more_than_8_bits_are_scaled_and_not_clipped(tmp_path, suffix, values, mode):
    path = tmp_path / f"a.{suffix}"
    pixels = decoded(Image.fromarray(values), path)
    with Image.open(path) as image:
        assert image.mode == mode
    np.testing.assert_array_equal(pixels, np.broadcast_to(SHADES[None, :, None], (2, 16, 3)))


def test_16_bit_pgm(tmp_path):
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5 16 2 65535\n" + gradient(np.uint16).astype(">u2").tobytes())
    np.testing.assert_array_equal(np.array(decode(path))[0, :, 0], SHADES)


def test_big_endian_16_bit_tiff(tmp_path):
    image = Image.fromarray(gradient(np.uint16).astype(">u2"))
    assert image.mode == "I;16B"
    np.testing.assert_array_equal(decoded(image, tmp_path / "a.tif")[0, :, 0], SHADES)


def test_black_images_stay_black(tmp_path):
    for dtype in (np.uint16, np.int32, np.float32):
        assert decoded(Image.fromarray(gradient(dtype, 0)), tmp_path / "black.tif").max() == 0


# ---- fewer bits than the file has room for ----


@pytest.mark.parametrize(
    ("bits", "expected"), [(8, 255), (10, 255), (12, 255), (13, 32), (14, 64), (16, 255)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "colours.png", "colours.tif"])
def test_up_to_12_bits_in_16_are_read_as_such(tmp_path, caplog, monkeypatch, bits, expected, name):
    values = gradient(np.uint16, 2**bits - 1)
    values = values if "grey" in name else np.stack([values, values // 2, values * 0], axis=-1)
    write = png(values, 16, 0 if "grey" in name else 2) if "png" in name else tiff(values, 1 if "grey" in name else 2)
    (tmp_path / name).write_bytes(write)
    monkeypatch.setattr(levels, "_noted", set())
    pixels = np.array(decode(tmp_path / name))
    assert pixels[0, :, 0].tolist() == pytest.approx(np.linspace(0, expected, 16), abs=1)
    noted = f"Images of 16 bits without a value above {2**bits - 1:,} are read as images of {bits} bits"
    assert caplog.messages == ([noted] if bits <= 12 else [])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("12 bits, dark.png", png(np.array([[0, 900]]), 16, 0, chunk(b"sBIT", b"\x0c")), 900 * 255 / 4095),
        ("16 bits, dark.png", png(np.array([[0, 900]]), 16, 0, chunk(b"sBIT", b"\x10")), 900 / 257),
        ("12 bits, scaled.png", png(np.array([[0, 16000]]), 16, 0, chunk(b"sBIT", b"\x0c")), 16000 / 257),
        ("12 bits, dark colours.png", png(np.full((1, 2, 3), 900), 16, 2, chunk(b"sBIT", b"\x0c" * 3)), 900 / 16.06),
        ("12 bits, dark.tif", tiff(np.array([[0, 900]], np.uint16), 1, extra={281: 4000}), 900 * 255 / 4095),
        ("16 bits, dark.tif", tiff(np.array([[0, 900]], np.uint16), 1, extra={281: 65535}), 900 / 257),
        ("16 bits, dark.pgm", b"P5 2 1 65535\n" + np.array([0, 900]).astype(">u2").tobytes(), 900 / 257),
        ("10 bits, dark.pgm", b"P5 2 1 1023\n" + np.array([0, 90]).astype(">u2").tobytes(), 90 * 255 / 1023),
    ],
)
def test_bits_that_the_file_says_are_believed(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert np.array(decode(tmp_path / name))[0, 1, 0] == pytest.approx(expected, abs=0.6)


def test_8_bits_in_32_bit_numbers(tmp_path):
    assert decoded(Image.fromarray(gradient(np.int32, 255)), tmp_path / "a.tif")[0, :, 0].tolist() == SHADES.tolist()


@pytest.mark.filterwarnings("error")
def test_nan_and_infinity_are_black(tmp_path):
    values = np.array([[np.nan, 0.5, np.inf, 1.0]], dtype=np.float32)
    row = decoded(Image.fromarray(values), tmp_path / "a.tif")[0, :, 0]
    np.testing.assert_array_equal(row, [0, 128, 0, 255])


# ---- orientation ----

# How an upright image is stored with each EXIF orientation. With 6, for example, the first row is the right side of the
# image, and the first column is its top.
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright.swapaxes(0, 1), 2),
    8: lambda upright: np.rot90(upright, -1),
}
UPRIGHT = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


def orientation_entry(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_are_turned_upright(tmp_path, orientation, suffix):
    stored = np.ascontiguousarray(STORED[orientation](UPRIGHT))
    pixels = decoded(Image.fromarray(stored), tmp_path / f"a.{suffix}", exif=orientation_entry(orientation))
    np.testing.assert_array_equal(pixels, UPRIGHT)


def test_jpeg_is_turned_upright(tmp_path):
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:, :16] = (220, 40, 40)
    upright[:, 16:] = (40, 40, 220)
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1)))
    pixels = decoded(stored, tmp_path / "a.jpg", exif=orientation_entry(6), quality=95, subsampling=0)
    assert pixels.shape == (16, 32, 3)
    np.testing.assert_allclose(pixels, upright, atol=12)


def test_16_bit_and_transparent_images_are_turned_upright(tmp_path):
    exif = orientation_entry(6)
    fine = np.array([[0, 257, 65535]], dtype=np.uint16)
    for name in ("fine.png", "fine.tif"):
        pixels = decoded(Image.fromarray(np.rot90(fine, 1).copy()), tmp_path / name, exif=exif)
        np.testing.assert_array_equal(pixels[..., 0], [[0, 1, 255]])
    clear = row_image("RGBA", (*RED, 255), (*RED, 0)).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(decoded(clear, tmp_path / "clear.png", exif=exif), [[RED, WHITE]])


def test_damaged_exif_is_ignored(tmp_path):
    pixels = decoded(row_image("RGB", RED, BLUE), tmp_path / "a.png", exif=b"Exif\0\0this is no EXIF")
    np.testing.assert_array_equal(pixels, [[RED, BLUE]])


def test_first_frame_is_read(tmp_path):
    frames = [row_image("RGB", colour) for colour in (RED, GREEN)]
    for suffix in ("gif", "tif"):
        pixels = decoded(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(pixels, [[RED]])


# ---- HEIC ----


def test_heic_needs_an_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(image_io, "has_heif", lambda: False)
    assert not is_image(Path("a.HEIC"))
    (tmp_path / "a.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(20))
    assert_refused(tmp_path / "a.jpg", "pip install 'longtail[heic]'")


def test_heic_is_read(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    pixels = decoded(Image.new("RGB", (64, 48), (200, 60, 20)), tmp_path / "a.HEIC", format="HEIF", quality=95)
    assert is_image(tmp_path / "a.HEIC")
    np.testing.assert_allclose(pixels, np.broadcast_to((200, 60, 20), (48, 64, 3)), atol=6)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "a PNG that is damaged or of an unsupported kind"),
        (b"II*\0" + bytes(40), "a TIFF that is damaged or of an unsupported kind"),
        (b"MM\0+\0\x08" + bytes(40), "a TIFF that is damaged or of an unsupported kind"),
        (tiff(np.zeros((2, 2, 5), np.uint8), 1), "a TIFF of 5 channels, none of which are said to be colours"),
        (tiff(np.zeros((2, 2, 5), np.uint8), 8), "a TIFF of 5 channels whose colours are neither grey nor RGB"),
        (tiff(np.zeros((2, 2, 3), np.uint16), 2, extra={258: [12] * 3}), "a TIFF of 3 channels whose values are not"),
        (tiff(np.zeros((2, 2, 3), np.uint16), 2, extra={259: 7}), "of 16 bits with compression jpeg; save it with LZW"),
    ],
)
def test_reason_names_the_format(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    assert_refused(tmp_path / "a.jpg", reason)


# ---- colours that Pillow alone reads wrongly ----

GREY = np.array([[0, 100, 255]])


def transparent(value: int, channels: int = 1) -> bytes:
    return chunk(b"tRNS", value.to_bytes(2, "big") * channels)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("16 bits with alpha.png", png(np.stack([GREY * 257, [[65535, 0, 65535]]], axis=-1), 16, 4), [0, 255, 255]),
        ("16 bits with a transparent value.png", png(GREY * 257, 16, 0, transparent(100 * 257)), [0, 255, 255]),
        ("4 bits.png", png(np.array([[0, 2, 14]]), 4, 0, transparent(2)), [0, 255, 238]),
        ("2 bits.png", png(np.array([[0, 1, 2]]), 2, 0, transparent(1)), [0, 255, 170]),
        ("colours.png", png(np.stack([GREY * 257] * 3, axis=-1), 16, 2, transparent(100 * 257, 3)), [0, 255, 255]),
        ("white is zero.tif", tiff((GREY * 257).astype(np.uint16), 0), [255, 155, 0]),
        ("12 of 16 bits.tif", tiff((GREY * 257 // 16).astype(np.uint16), 1, extra={281: 4095}), [0, 100, 255]),
    ],
)
def test_levels_mean_what_the_file_says(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert np.array(decode(tmp_path / name))[0].tolist() == [[value] * 3 for value in expected]


# ---- TIFFs of many kinds ----

COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3))


def scaled(dtype: str) -> np.ndarray:
    """`COLOURS`, with white as bright as the type allows, or 1 for floats."""
    return (COLOURS / 255).astype(dtype) if dtype[0] == "f" else (COLOURS * (np.iinfo(dtype).max // 255)).astype(dtype)


def with_extra(values: np.ndarray, *channels: float) -> np.ndarray:
    return np.concatenate([values, *(np.full_like(values[..., :1], channel) for channel in channels)], axis=-1)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f2", "f4", "f8"])
@pytest.mark.parametrize("planar", [1, 2])
def test_colours_of_all_types_with_further_channels(tmp_path, dtype, planar):
    values = with_extra(scaled(dtype), 1, 0, 1, 0, 0)
    values = values.transpose(2, 0, 1) if planar == 2 else values
    (tmp_path / "a.tif").write_bytes(tiff(values, 2, planar=planar, extra={338: [0] * 5}))
    np.testing.assert_array_equal(np.array(decode(tmp_path / "a.tif")), COLOURS)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
@pytest.mark.parametrize("photometric", [1, 2])
def test_alpha_of_all_types(tmp_path, dtype, photometric):
    values = scaled(dtype) if photometric == 2 else scaled(dtype)[..., :1]
    colours = np.broadcast_to(COLOURS if photometric == 2 else COLOURS[..., :1], COLOURS.shape)
    opaque, half = (np.array([255, 51]) / 255 * (np.iinfo(dtype).max if dtype[0] == "u" else 1)).astype(dtype)
    blended = np.rint(colours * 0.2 + 255 * 0.8)
    for kind, alpha, expected in ((2, opaque, colours), (2, 0, colours * 0 + 255), (2, half, blended), (0, 0, colours)):
        (tmp_path / "a.tif").write_bytes(tiff(with_extra(values, alpha), photometric, extra={338: kind}))
        np.testing.assert_allclose(np.array(decode(tmp_path / "a.tif")), expected, atol=1)
    premultiplied = np.rint(values * 0.2) if dtype[0] == "u" else values * 0.2
    (tmp_path / "a.tif").write_bytes(tiff(with_extra(premultiplied, half).astype(dtype), photometric, extra={338: 1}))
    np.testing.assert_allclose(np.array(decode(tmp_path / "a.tif")), blended, atol=1)


def neighbour_differences(values: np.ndarray) -> np.ndarray:
    return np.diff(values, axis=1, prepend=np.zeros_like(values[:, :1]))


def sorted_byte_differences(values: np.ndarray) -> np.ndarray:
    """Byte by byte, as the technical note says: the bytes of a row by significance, then differences over channels."""
    height, width, channels = values.shape
    stored = []
    for row in values.astype(values.dtype.newbyteorder(">")):
        content = row.tobytes()
        size = values.itemsize
        ordered = [content[i] for byte in range(size) for i in range(byte, len(content), size)]
        stored += [(b - (ordered[i - channels] if i >= channels else 0)) % 256 for i, b in enumerate(ordered)]
    return np.array(stored, dtype=np.uint8).view(values.dtype).reshape(height, width, channels)


@pytest.mark.parametrize(
    ("dtype", "predictor", "change"),
    [
        ("u2", 2, neighbour_differences),
        ("f2", 3, sorted_byte_differences),
        ("f4", 3, sorted_byte_differences),
    ],
)
def test_predictors(tmp_path, dtype, predictor, change):
    stored = tiff(change(scaled(dtype)), 2, extra={259: 8, 317: predictor})
    (tmp_path / "a.tif").write_bytes(stored)
    np.testing.assert_array_equal(np.array(decode(tmp_path / "a.tif")), COLOURS)


def test_signed_values(tmp_path):
    values = np.array([[-100, 0, 100]])
    for dtype in ("i1", "i2", "i4"):
        (tmp_path / "a.tif").write_bytes(tiff(values.astype(dtype), 1))
        assert np.array(decode(tmp_path / "a.tif"))[0, :, 0].tolist() == pytest.approx([0, 127.5, 255], abs=0.6)


def test_tiff_with_missing_pixels_is_refused(tmp_path):
    for compression in (1, 8):
        content = tiff(scaled("u2"), 2, extra={259: compression})
        (tmp_path / "a.tif").write_bytes(content[:-20])
        assert_refused(tmp_path / "a.tif", "")


@pytest.mark.parametrize(
    "change", [{277: 60000, 258: [8] * 60000, 339: [1] * 60000}, {322: 2**31, 323: 16, 324: 8, 325: 8}]
)
def test_tiff_that_would_exhaust_memory_is_refused(tmp_path, change):
    (tmp_path / "a.tif").write_bytes(tiff(np.zeros((200, 300, 3), np.uint16), 2, extra={259: 8, **change}))
    assert_refused(tmp_path / "a.tif", "a possible decompression bomb")


# ---- damage that costs no pixel ----


def test_jpeg_without_its_end_or_after_other_bytes(tmp_path):
    path = tmp_path / "a.jpg"
    noise().save(path)
    content, expected = path.read_bytes(), np.array(decode(path))
    further = content + b"phones write more here" * 9
    for changed in (content[:-2], content[:-1], b"\r\n" + content, further):
        path.write_bytes(changed)
        np.testing.assert_array_equal(np.array(decode(path)), expected)
    noise().save(path, progressive=True)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    assert decode(path).size == (64, 64)
    for cut in (content[:-60], content[:-12], whole[:-60], b"\r\n" + content[:-60]):
        path.write_bytes(cut)
        assert_refused(path, "truncated")


@pytest.mark.parametrize(
    "metadata",
    [
        b"\0\0\0\5tEXta\0bcd\1\2\3\4",
        chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(70_000_000), 1)),
        chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(70_000_000), 1)),
    ],
    ids=["damaged text", "large text", "large colour profile"],
)
def test_metadata_of_a_png_are_no_reason_to_refuse_it(tmp_path, metadata):
    path = tmp_path / "a.png"
    path.write_bytes(png(GREY, 8, 0, metadata))
    assert np.array(decode(path))[0, :, 0].tolist() == [0, 100, 255]
    path.write_bytes(png(GREY, 8, 0, metadata)[:-24])
    assert_refused(path, "")


# ---- images that do not decode ----


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(InputError) as error:
        decode(path)
    message = str(error.value)
    assert message.startswith(f"{path}: does not decode (")
    assert reason in message
    assert "\n" not in message


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_missing_empty_and_other_files_are_refused(tmp_path):
    assert_refused(tmp_path / "missing.png", "No such file or directory")
    assert_refused(tmp_path, "Is a directory")
    (tmp_path / "empty.jpg").touch()
    assert_refused(tmp_path / "empty.jpg", "the file is empty")
    (tmp_path / "text.jpg").write_text("an image of a cat")
    assert_refused(tmp_path / "text.jpg", "not an image of a supported format")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "ppm"])
def test_truncated_image_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(path, "")


def test_damaged_png_is_refused(tmp_path):
    path = tmp_path / "a.png"
    noise().save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert_refused(path, "")


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    noise().save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    assert_refused(path, "exceeds limit of 4094 pixels")


# ---- names ----


def test_images_have_known_extensions():
    for suffix in (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"):
        assert is_image(Path("a b") / f"c.d{suffix}")
        assert is_image(Path(f"c{suffix.upper()}"))
        assert suffix in SUFFIXES
    Image.init()
    assert {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS} <= SUFFIXES
    for name in ("notes.txt", "jpg", ".jpg", "a.jpg.part", "a.npy", "a"):
        assert not is_image(Path(name))


def test_pipes_and_devices_are_refused_without_being_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        with pytest.raises(InputError, match="a pipe or a device, not a file"):
            decode(path)
