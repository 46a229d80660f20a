"""Images that are decoded once and kept in memory."""

import numpy as np
import pytest
from PIL import Image

from longtail.data.image_io import decode
from longtail.data.memory_cache import decode_all
from longtail.data.splits import ImageSplit
from longtail.data.transforms import eval_transform
from longtail.utils.errors import InputError

TRANSFORM = eval_transform(14, None)


@pytest.fixture
def split(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(9)]
    for number, path in enumerate(paths):
        pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30 - number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return ImageSplit(np.arange(9), paths=np.array(paths, dtype=object))


def test_images_are_decoded_in_order(split):
    decoded = decode_all(split, TRANSFORM)
    assert decoded.paths is None
    assert (decoded.pixels.dtype, decoded.pixels.shape) == (np.uint8, (9, 14, 14, 3))
    assert decoded.pixels.flags.c_contiguous
    np.testing.assert_array_equal(decoded.labels, split.labels)
    for path, pixels in zip(split.paths, decoded.pixels, strict=True):
        np.testing.assert_array_equal(pixels, TRANSFORM(decode(path)).permute(1, 2, 0))


def test_corrupt_images_are_named(split):
    for number in (0, 3):
        split.paths[number].write_bytes(b"")
    with pytest.raises(InputError) as error:
        decode_all(split, TRANSFORM)
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{split.paths[0]}: does not decode")
    assert second.startswith(f"{split.paths[3]}: does not decode")
