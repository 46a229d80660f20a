"""Parts of image files, compared with crops of the fully decoded image."""

import itertools
import re

import numpy as np
import pytest
from PIL import ExifTags, Image

from longtail.data.image_io import decode
from longtail.data.partial_decode import decode_part, reduction
from longtail.utils.errors import InputError

SIZE = (203, 165)  # odd, so that reduced sizes are rounded
BOX = (11, 22, 150, 120)


def photo(width, height):
    """Smooth blobs of colour: the detail of a photo without its noise."""
    values = np.random.default_rng(0).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def saved(path, image=None, orientation=None, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    (photo(*SIZE) if image is None else image).save(path, exif=exif, **{"quality": 90, **options})
    return path


def cropped(path, box):
    """The same part of the fully decoded image."""
    return np.array(decode(path).crop(box))


def part_of(path, box, min_size):
    """The decoded part; also checks that ``choose`` gets the size of the upright image, once."""
    sizes = []
    part = decode_part(path, lambda *size: sizes.append(size) or box, min_size)
    assert part.mode == "RGB"
    assert sizes == [decode(path).size]
    return np.array(part)


# ---- reductions ----


def test_no_side_is_reduced_below_the_minimum():
    for width, height, min_size in itertools.product(
        [1, 7, 8, 63, 64, 65, 127, 128, 2000], [16, 64, 500], [1, 8, 16, 64]
    ):
        factor = reduction((5, 9, 5 + width, 9 + height), min_size)
        assert factor in (1, 2, 4, 8)
        assert factor == 1 or min(width, height) / factor >= min_size
        assert factor == 8 or min(width, height) / (2 * factor) < min_size


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_parts_have_the_minimum_size_at_any_position(tmp_path, orientation):
    path = saved(tmp_path / "a.jpg", orientation=orientation)
    width, height = decode(path).size
    for (min_size, side), shift in itertools.product([(20, 80), (40, 80)], range(9)):
        for box in ((shift, shift, shift + side, shift + side), (width - side, height - side, width, height)):
            assert part_of(path, box, min_size).shape == (min_size, min_size, 3)


# ---- pixels ----


@pytest.mark.parametrize("orientation", range(1, 9))
def test_part_without_reduction_equals_the_crop(tmp_path, orientation):
    path = saved(tmp_path / "a.jpg", orientation=orientation)
    np.testing.assert_array_equal(part_of(path, BOX, 100), cropped(path, BOX))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("factor", [2, 4])
def test_reduced_part_resembles_the_crop(tmp_path, orientation, factor):
    """Another part or orientation differs by tens of levels, and a shift by two pixels by several."""
    path = saved(tmp_path / "a.jpg", orientation=orientation)
    part = part_of(path, BOX, min(BOX[2] - BOX[0], BOX[3] - BOX[1]) // factor)
    for side, full in zip(part.shape, (BOX[3] - BOX[1], BOX[2] - BOX[0]), strict=False):
        assert abs(side - full / factor) < 1

    def difference(box):
        small = Image.fromarray(cropped(path, box)).resize(part.shape[1::-1], Image.Resampling.BOX)
        return np.abs(np.array(small, dtype=float) - part).mean()

    assert difference(BOX) < 5 * factor  # because edges are rounded
    for across, down in ((2 * factor, 0), (-2 * factor, 0), (0, 2 * factor), (0, -2 * factor)):
        moved = tuple(edge + step for edge, step in zip(BOX, (across, down, across, down), strict=True))
        assert difference(moved) > 1.5 * difference(BOX)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk(tmp_path, mode):
    path = saved(tmp_path / "a.jpg", photo(*SIZE).convert(mode))
    np.testing.assert_array_equal(part_of(path, BOX, 100), cropped(path, BOX))
    reduced = part_of(path, BOX, 45)
    assert reduced.shape == ((49, 69, 3) if mode == "L" else (98, 139, 3))  # CMYK is decoded in full


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_other_jpegs(tmp_path, options):
    path = saved(tmp_path / "a.jpg", **options)
    np.testing.assert_array_equal(part_of(path, BOX, 100), cropped(path, BOX))
    assert part_of(path, BOX, 45).shape == (49, 69, 3)


def test_jpeg_followed_by_others(tmp_path):
    path = tmp_path / "a.jpg"
    photo(*SIZE).save(path, "MPO", save_all=True, append_images=[Image.new("RGB", SIZE)], quality=90)
    with Image.open(path) as image:
        assert image.format == "MPO"
    np.testing.assert_array_equal(part_of(path, BOX, 100), cropped(path, BOX))
    reduced = part_of(path, BOX, 45)
    small = Image.fromarray(cropped(path, BOX)).resize((69, 49), Image.Resampling.BOX)
    assert np.abs(np.array(small, dtype=float) - reduced).mean() < 6


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp"])
def test_other_formats_are_decoded_in_full(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    photo(*SIZE).save(path)
    np.testing.assert_array_equal(part_of(path, BOX, 1), cropped(path, BOX))


def test_scaling_does_not_depend_on_the_part(tmp_path):
    """Float images are scaled by the range of the full image."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.linspace(-1500, 1500, 64, dtype=np.float32).reshape(8, 8)).save(path)
    box = (0, 2, 8, 5)
    np.testing.assert_array_equal(part_of(path, box, 1), cropped(path, box))


def test_damaged_exif_is_ignored(tmp_path):
    path = tmp_path / "a.jpg"
    photo(*SIZE).save(path, exif=b"Exif\0\0this is no EXIF")
    np.testing.assert_array_equal(part_of(path, BOX, 100), cropped(path, BOX))


# ---- images that do not decode ----


def assert_same_error(path) -> None:
    messages = []
    for read in (decode, lambda path: decode_part(path, lambda width, height: (0, 0, width, height), 16)):
        with pytest.raises(InputError) as error:
            read(path)
        messages.append(re.sub(r"\d+", "0", str(error.value)))  # without numbers of bytes
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]


def test_truncated_jpeg_has_the_error_of_decode(tmp_path):
    content = saved(tmp_path / "a.jpg").read_bytes()
    for length in (0, 10, 200, len(content) // 2, len(content) * 3 // 4):
        path = tmp_path / f"{length}.jpg"
        path.write_bytes(content[:length])
        assert_same_error(path)


def test_other_files_have_the_error_of_decode(tmp_path, monkeypatch):
    assert_same_error(tmp_path / "missing.jpg")
    (tmp_path / "text.jpg").write_text("an image of a cat")
    assert_same_error(tmp_path / "text.jpg")
    assert_same_error(saved(tmp_path / "line.jpg", Image.new("RGB", (1000, 2))))
    path = saved(tmp_path / "large.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert_same_error(path)
