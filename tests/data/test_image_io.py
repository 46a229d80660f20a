"""Every kind of picture file against colours and shapes written down here."""

from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from longtail.data.image_io import FORMATS, SUFFIXES, decode, is_image
from longtail.utils.errors import InputError

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def picture(mode: str, *pixels) -> Image.Image:
    """A picture of one row."""
    image = Image.new(mode, (len(pixels), 1))
    for column, value in enumerate(pixels):
        image.putpixel((column, 0), value)
    return image


def palette_picture(*colours) -> Image.Image:
    """A palette picture of one row that shows each colour of its palette once."""
    image = picture("P", *range(len(colours)))
    image.putpalette([value for colour in colours for value in colour])
    return image


def decoded(image: Image.Image, path: Path, **options) -> np.ndarray:
    """(H, W, 3), what is read back after saving."""
    image.save(path, **options)
    result = decode(path)
    assert result.mode == "RGB"
    return np.array(result)


# ---- colours ----


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "ppm", "gif"])
def test_lossless_rgb_comes_back_exactly(tmp_path, suffix):
    row = decoded(picture("RGB", RED, GREEN, BLUE, WHITE, BLACK), tmp_path / f"a.{suffix}")[0]
    np.testing.assert_array_equal(row, [RED, GREEN, BLUE, WHITE, BLACK])


def test_lossy_rgb_comes_back_nearly(tmp_path):
    for suffix in ("jpg", "webp"):
        pixels = decoded(Image.new("RGB", (16, 16), (200, 60, 20)), tmp_path / f"a.{suffix}", quality=95)
        assert pixels.shape == (16, 16, 3)
        np.testing.assert_allclose(pixels, np.broadcast_to((200, 60, 20), pixels.shape), atol=4)


def test_grey_and_black_and_white(tmp_path):
    np.testing.assert_array_equal(
        decoded(picture("L", 0, 100, 255), tmp_path / "grey.png")[0], [BLACK, (100,) * 3, WHITE]
    )
    np.testing.assert_array_equal(decoded(picture("1", 0, 1), tmp_path / "bits.png")[0], [BLACK, WHITE])


def test_palette(tmp_path):
    colours = [(10, 20, 30), RED, (0, 128, 255)]
    for suffix in ("png", "gif", "bmp"):
        np.testing.assert_array_equal(decoded(palette_picture(*colours), tmp_path / f"a.{suffix}")[0], colours)


def test_cmyk(tmp_path):
    inks = (51, 102, 0, 25)
    expected = [round(255 * (1 - ink / 255) * (1 - inks[3] / 255)) for ink in inks[:3]]
    image = Image.new("CMYK", (16, 16), inks)
    np.testing.assert_allclose(decoded(image, tmp_path / "a.tif")[3, 5], expected, atol=1)
    np.testing.assert_allclose(decoded(image, tmp_path / "a.jpg", quality=95)[3, 5], expected, atol=4)


# ---- transparency ----


def test_transparent_is_white_by_as_much_as_it_is(tmp_path):
    image = picture("RGBA", (*BLUE, 255), (*BLUE, 0), (0, 0, 200, 51))
    row = decoded(image, tmp_path / "a.png")[0]
    np.testing.assert_array_equal(row[:2], [BLUE, WHITE])
    np.testing.assert_allclose(row[2], [0.8 * 255, 0.8 * 255, 0.8 * 255 + 0.2 * 200], atol=1)


def test_transparent_grey(tmp_path):
    row = decoded(picture("LA", (0, 255), (0, 0), (100, 51)), tmp_path / "a.png")[0]
    np.testing.assert_array_equal(row[:2], [BLACK, WHITE])
    np.testing.assert_allclose(row[2], (0.8 * 255 + 0.2 * 100,) * 3, atol=1)


def test_palette_with_one_transparent_colour(tmp_path):
    for suffix in ("png", "gif"):
        row = decoded(palette_picture(RED, GREEN, BLUE), tmp_path / f"a.{suffix}", transparency=1)[0]
        np.testing.assert_array_equal(row, [RED, WHITE, BLUE])


def test_palette_with_transparency_of_each_colour(tmp_path):
    row = decoded(palette_picture(RED, GREEN, BLACK), tmp_path / "a.png", transparency=bytes([255, 0, 51]))[0]
    np.testing.assert_array_equal(row[:2], [RED, WHITE])
    np.testing.assert_allclose(row[2], (0.8 * 255,) * 3, atol=1)


def test_one_transparent_colour_without_a_palette(tmp_path):
    grey = decoded(picture("L", 7, 8), tmp_path / "grey.png", transparency=7)[0]
    np.testing.assert_array_equal(grey, [WHITE, (8, 8, 8)])
    rgb = decoded(picture("RGB", RED, BLUE), tmp_path / "rgb.png", transparency=RED)[0]
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
def test_fine_shades_are_scaled_and_not_clipped(tmp_path, suffix, values, mode):
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


def test_dark_and_black_16_bit_pictures_stay_so(tmp_path):
    dark = decoded(Image.fromarray(gradient(np.uint16, 15 * 257)), tmp_path / "dark.png")
    np.testing.assert_array_equal(dark[0, :, 0], np.arange(16))
    for dtype in (np.uint16, np.int32, np.float32):
        assert decoded(Image.fromarray(gradient(dtype, 0)), tmp_path / "black.tif").max() == 0


@pytest.mark.filterwarnings("error")
def test_missing_values_are_black(tmp_path):
    values = np.array([[np.nan, 0.5, np.inf, 1.0]], dtype=np.float32)
    row = decoded(Image.fromarray(values), tmp_path / "a.tif")[0, :, 0]
    np.testing.assert_array_equal(row, [0, 128, 0, 255])


# ---- orientation ----

# How an upright picture is stored under each orientation. EXIF says of 6, for one: the first row is the right-hand
# side of the picture, the first column its top.
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
def test_turned_picture_comes_upright(tmp_path, orientation, suffix):
    stored = np.ascontiguousarray(STORED[orientation](UPRIGHT))
    pixels = decoded(Image.fromarray(stored), tmp_path / f"a.{suffix}", exif=orientation_entry(orientation))
    np.testing.assert_array_equal(pixels, UPRIGHT)


def test_turned_jpeg_comes_upright(tmp_path):
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:, :16] = (220, 40, 40)
    upright[:, 16:] = (40, 40, 220)
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright, 1)))
    pixels = decoded(stored, tmp_path / "a.jpg", exif=orientation_entry(6), quality=95, subsampling=0)
    assert pixels.shape == (16, 32, 3)
    np.testing.assert_allclose(pixels, upright, atol=12)


def test_turned_16_bit_and_transparent_pictures_come_upright(tmp_path):
    exif = orientation_entry(6)
    fine = np.array([[0, 257, 514]], dtype=np.uint16)
    pixels = decoded(Image.fromarray(np.rot90(fine, 1).copy()), tmp_path / "fine.png", exif=exif)
    np.testing.assert_array_equal(pixels[..., 0], [[0, 1, 2]])
    clear = picture("RGBA", (*RED, 255), (*RED, 0)).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(decoded(clear, tmp_path / "clear.png", exif=exif), [[RED, WHITE]])


def test_damaged_exif_does_not_matter(tmp_path):
    pixels = decoded(picture("RGB", RED, BLUE), tmp_path / "a.png", exif=b"Exif\0\0this is no EXIF")
    np.testing.assert_array_equal(pixels, [[RED, BLUE]])


def test_first_frame_of_an_animation(tmp_path):
    frames = [picture("RGB", colour) for colour in (RED, GREEN)]
    for suffix in ("gif", "tif"):
        pixels = decoded(frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        np.testing.assert_array_equal(pixels, [[RED]])


# ---- what does not decode ----


def assert_refused(path: Path, reason: str) -> None:
    with pytest.raises(InputError) as refused:
        decode(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: does not decode (")
    assert reason in message
    assert "\n" not in message


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


def test_absent_empty_and_other_files_are_refused(tmp_path):
    assert_refused(tmp_path / "absent.png", "No such file or directory")
    assert_refused(tmp_path, "Is a directory")
    (tmp_path / "empty.jpg").touch()
    assert_refused(tmp_path / "empty.jpg", "the file is empty")
    (tmp_path / "text.jpg").write_text("a picture of a cat")
    assert_refused(tmp_path / "text.jpg", "not a picture of a known kind")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif", "ppm"])
def test_truncated_picture_is_refused(tmp_path, suffix):
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


def test_pictures_are_known_by_their_suffix():
    for suffix in (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"):
        assert is_image(Path("a b") / f"c.d{suffix}")
        assert is_image(Path(f"c{suffix.upper()}"))
        assert suffix in SUFFIXES
    Image.init()
    assert {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS} <= SUFFIXES
    for name in ("notes.txt", "jpg", ".jpg", "a.jpg.part", "a.npy", "a"):
        assert not is_image(Path(name))
