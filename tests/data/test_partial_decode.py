"""SplitModel of picture files against the whole picture, decoded in full and cropped."""

import itertools
import re

import numpy as np
import pytest
from PIL import ExifTags, Image

from longtail.data.image_io import decode
from longtail.data.partial_decode import Box, decode_part, reduction
from longtail.utils.errors import InputError

SIZE = (203, 165)  # odd, so that reduced sizes are rounded
BOX = Box(11, 22, 150, 120)


def photo(width: int, height: int) -> Image.Image:
    """Smooth blobs of colour, different everywhere: the detail of a photograph, without its noise."""
    values = np.random.default_rng(0).integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def saved(path, image=None, orientation: int | None = None, **options):
    exif = Image.Exif()
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = orientation
    (photo(*SIZE) if image is None else image).save(path, exif=exif, **{"quality": 90, **options})
    return path


def cropped(path, box: Box) -> np.ndarray:
    return np.array(decode(path).crop(box))


def part_of(path, box: Box, least: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The part, and the size that `choose` was told."""
    told = []

    def choose(width, height):
        told.append((width, height))
        return box

    part = decode_part(path, choose, least)
    assert part.mode == "RGB"
    (size,) = told
    return np.array(part), size


# ---- how small ----


def test_no_side_is_made_shorter_than_wanted():
    for width, height, least in itertools.product([1, 7, 8, 63, 64, 65, 127, 128, 2000], [16, 64, 500], [1, 8, 16, 64]):
        factor = reduction(Box(5, 9, 5 + width, 9 + height), least)
        assert factor in (1, 2, 4, 8)
        assert factor == 1 or min(width, height) / factor >= least
        assert factor == 8 or min(width, height) / (2 * factor) < least


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_parts_keep_the_wanted_size_wherever_they_lie(tmp_path, orientation):
    path = saved(tmp_path / "a.jpg", orientation=orientation)
    width, height = decode(path).size
    for least, shift in itertools.product((20, 40), range(9)):
        side = 2 * least if least == 40 else 4 * least
        for box in (Box(shift, shift, shift + side, shift + side), Box(width - side, height - side, width, height)):
            part, _ = part_of(path, box, least)
            assert part.shape == (least, least, 3)


# ---- the same pixels ----


@pytest.mark.parametrize("orientation", range(1, 9))
def test_at_full_size_the_part_is_exactly_that_of_the_whole(tmp_path, orientation):
    path = saved(tmp_path / "a.jpg", orientation=orientation)
    part, told = part_of(path, BOX, least=100)
    assert told == decode(path).size
    np.testing.assert_array_equal(part, cropped(path, BOX))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("factor", [2, 4])
def test_reduced_the_part_shows_the_same(tmp_path, orientation, factor):
    """Any other part, or any other turn of it, differs by tens of levels; one that is shifted by two pixels by some."""
    path = saved(tmp_path / "a.jpg", orientation=orientation)
    least = min(BOX[2] - BOX[0], BOX[3] - BOX[1]) // factor
    part, told = part_of(path, BOX, least)
    assert told == decode(path).size
    for side, full in zip(part.shape, (BOX.bottom - BOX.top, BOX.right - BOX.left), strict=False):
        assert abs(side - full / factor) < 1

    def difference(box):
        small = Image.fromarray(cropped(path, box)).resize(part.shape[1::-1], Image.Resampling.BOX)
        return np.abs(np.array(small, dtype=float) - part).mean()

    assert difference(BOX) < 5 * factor  # edges are moved by up to half a pixel
    for across, down in ((2 * factor, 0), (-2 * factor, 0), (0, 2 * factor), (0, -2 * factor)):
        moved = Box(BOX.left + across, BOX.top + down, BOX.right + across, BOX.bottom + down)
        assert difference(moved) > 1.5 * difference(BOX)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk(tmp_path, mode):
    path = saved(tmp_path / "a.jpg", photo(*SIZE).convert(mode))
    np.testing.assert_array_equal(part_of(path, BOX, 100)[0], cropped(path, BOX))
    reduced, _ = part_of(path, BOX, 45)
    assert reduced.shape == ((49, 69, 3) if mode == "L" else (98, 139, 3))  # inks are decoded in full


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_other_jpegs(tmp_path, options):
    path = saved(tmp_path / "a.jpg", **options)
    np.testing.assert_array_equal(part_of(path, BOX, 100)[0], cropped(path, BOX))
    assert part_of(path, BOX, 45)[0].shape == (49, 69, 3)


def test_jpeg_with_others_behind_it(tmp_path):
    path = tmp_path / "a.jpg"
    photo(*SIZE).save(path, "MPO", save_all=True, append_images=[Image.new("RGB", SIZE)], quality=90)
    with Image.open(path) as image:
        assert image.format == "MPO"
    np.testing.assert_array_equal(part_of(path, BOX, 100)[0], cropped(path, BOX))
    reduced, _ = part_of(path, BOX, 45)
    small = Image.fromarray(cropped(path, BOX)).resize((69, 49), Image.Resampling.BOX)
    assert np.abs(np.array(small, dtype=float) - reduced).mean() < 6


@pytest.mark.parametrize("suffix", ["png", "webp", "bmp"])
def test_other_formats_are_decoded_in_full(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    photo(*SIZE).save(path)
    np.testing.assert_array_equal(part_of(path, BOX, 1)[0], cropped(path, BOX))


def test_shades_do_not_depend_on_the_part(tmp_path):
    """Real numbers are brought to 0 to 255 by the range of the whole picture."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.linspace(-1500, 1500, 64, dtype=np.float32).reshape(8, 8)).save(path)
    box = Box(0, 2, 8, 5)
    np.testing.assert_array_equal(part_of(path, box, 1)[0], cropped(path, box))


def test_damaged_exif_does_not_matter(tmp_path):
    path = tmp_path / "a.jpg"
    photo(*SIZE).save(path, exif=b"Exif\0\0this is no EXIF")
    np.testing.assert_array_equal(part_of(path, BOX, 100)[0], cropped(path, BOX))


# ---- what does not decode ----


def assert_refused_alike(path) -> None:
    messages = []
    for read in (decode, lambda path: decode_part(path, lambda width, height: Box(0, 0, width, height), 16)):
        with pytest.raises(InputError) as refused:
            read(path)
        messages.append(re.sub(r"\d+", "0", str(refused.value)))  # how many bytes were left is no matter
    assert messages[0] == messages[1]
    assert "\n" not in messages[0]


def test_truncated_jpeg_is_refused_in_the_same_words(tmp_path):
    content = saved(tmp_path / "a.jpg").read_bytes()
    for length in (0, 10, 200, len(content) // 2, len(content) * 3 // 4):
        path = tmp_path / f"{length}.jpg"
        path.write_bytes(content[:length])
        assert_refused_alike(path)


def test_others_are_refused_in_the_same_words(tmp_path, monkeypatch):
    assert_refused_alike(tmp_path / "absent.jpg")
    (tmp_path / "text.jpg").write_text("a picture of a cat")
    assert_refused_alike(tmp_path / "text.jpg")
    assert_refused_alike(saved(tmp_path / "line.jpg", Image.new("RGB", (1000, 2))))
    path = saved(tmp_path / "large.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert_refused_alike(path)
