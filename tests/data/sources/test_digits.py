"""The digits of scikit-learn."""

from collections import Counter

import numpy as np

from longtail.data.sources.digits import digits


def test_digits_are_balanced():
    data = digits()
    assert data.num_classes == 10
    assert data.val is None
    assert np.bincount(data.test.labels).tolist() == [60] * 10
    assert data.class_counts == [114] * 10
    assert data.train.pixels.shape[1:] == (8, 8, 3)
    assert data.train.pixels.dtype == np.uint8


def test_digits_are_those_of_scikit_learn():
    """Each image is in scikit-learn's data set, with the same label, and occurs once."""
    from sklearn.datasets import load_digits

    data, bunch = digits(), load_digits()
    images = np.concatenate([data.train.pixels, data.test.pixels]).astype(float)
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert (images[..., :1] == images).all()
    sixteenths = np.round(images[..., 0] * (16 / 255)).astype(int)
    ours = Counter((int(k), p.tobytes()) for k, p in zip(labels, sixteenths, strict=True))
    theirs = Counter((int(k), p.astype(int).tobytes()) for k, p in zip(bunch.target, bunch.images, strict=True))
    assert ours <= theirs
    assert ours.total() == 1740


def test_test_images_depend_on_the_seed():
    np.testing.assert_array_equal(digits(3).test.pixels, digits(3).test.pixels)
    assert not np.array_equal(digits(3).test.pixels, digits(4).test.pixels)
