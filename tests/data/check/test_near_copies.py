"""Near copies are found, whatever was done to the copy, and unrelated images are not."""

import io

import numpy as np
import pytest
from PIL import Image

from longtail.data.check import near_copies as module
from longtail.data.check.near_copies import SIDE, difference_hashes, near_copies, num_tiles


def picture(seed, size=96):
    """A smooth picture with edges."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    image = small.resize((size, size), Image.Resampling.BICUBIC)
    left, top = random.integers(0, size // 2, 2).tolist()
    image.paste(tuple(random.integers(0, 256, 3).tolist()), (left, top, left + size // 3, top + size // 3))
    return image


def thumbnail(image):
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def jpeg(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=40)
    return Image.open(buffer)


def pairs(thumbnails):
    found = list(near_copies(np.stack(thumbnails)))
    assert len(found) == num_tiles(len(thumbnails))
    return sorted((a, b) for tile in found for a, b in zip(tile.first.tolist(), tile.second.tolist(), strict=True))


@pytest.mark.parametrize(
    "change",
    [
        jpeg,
        lambda image: image.resize((40, 40), Image.Resampling.BILINEAR),
        lambda image: image.resize((300, 300), Image.Resampling.BICUBIC),
        lambda image: image.crop((3, 3, 93, 93)),
        lambda image: image.crop((0, 0, 91, 91)),
        lambda image: image.point(lambda value: 0.9 * value + 10),
    ],
    ids=["JPEG", "smaller", "larger", "central crop", "crop at a corner", "brighter"],
)
def test_changed_copies_are_found(change):
    images = [picture(seed) for seed in range(30)]
    copies = [change(image) for image in images]
    found = pairs([thumbnail(image) for image in images + copies])
    assert set(found) <= {(k, 30 + k) for k in range(30)}
    assert len(found) >= 29


def test_tiles_give_the_same_pairs_as_all_pairs_at_once(monkeypatch):
    random = np.random.default_rng(1)
    base = [thumbnail(picture(seed)) for seed in range(12)]
    noisy = [np.clip(base[k % 12] + random.normal(0, 4, base[0].shape), 0, 255).astype(np.uint8) for k in range(30)]
    everything = pairs(base + noisy)
    monkeypatch.setattr(module, "TILE", 7)
    monkeypatch.setattr(module, "CHUNK", 2)
    assert pairs(base + noisy) == everything
    assert len(everything) >= 30


def test_hashes_compare_neighbours():
    """Compared with a slow version on pictures whose pixels are blocks of the grid of 9 x 9."""
    random = np.random.default_rng(2)
    thumbnails = random.integers(0, 256, (5, SIDE, SIDE, 3), dtype=np.uint8)
    bits = np.unpackbits(difference_hashes(thumbnails).view(np.uint8), axis=1)
    for image, found in zip(thumbnails, bits, strict=True):
        grey = image @ np.array([0.299, 0.587, 0.114])
        fine = grey.repeat(9, axis=0).repeat(9, axis=1)  # 144 x 144, so that a pixel of the grid has 16 x 16
        grid = fine.reshape(9, 16, 9, 16).mean(axis=(1, 3))
        expected = [grid[y, x + 1] > grid[y, x] for y in range(8) for x in range(8)]
        expected += [grid[y + 1, x] > grid[y, x] for y in range(8) for x in range(8)]
        assert found.tolist() == [int(bit) for bit in expected]


def test_no_images():
    assert list(near_copies(np.empty((0, SIDE, SIDE, 3), dtype=np.uint8))) == []
