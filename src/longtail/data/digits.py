"""scikit-learn's handwritten digits: the real data that comes with the package."""

import numpy as np

from longtail.data.longtail import choose_subset
from longtail.data.splits import Dataset, Split

TEST_PER_CLASS = 60


def digits(seed: int = 0) -> Dataset:
    """1,797 grey 8x8 pictures of ten digits (Alpaydin and Kaynak, 1998): 60 of each class for testing.

    Between 114 and 123 of each are left for training; `Dataset.imbalanced` makes the tail.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    held_out = np.sort(choose_subset(labels, [TEST_PER_CLASS] * 10, seed))
    everything = Split(labels, np.repeat(grey[..., None], 3, axis=3))
    train = everything.take(np.setdiff1d(np.arange(len(labels)), held_out))
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return Dataset(train, None, everything.take(held_out), names)
