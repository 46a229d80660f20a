"""scikit-learn's handwritten digits: the real data that comes with the package."""

import numpy as np

from longtail.config.schema import DataConfig
from longtail.data.imbalance import choose_subset
from longtail.data.sources import register
from longtail.data.splits import DataSplits, ImageSplit

TEST_PER_CLASS = 60
TRAIN_PER_CLASS = 114
"""What the rarest digit has left."""


@register("digits", num_classes=10, image_size=8)
def load(settings: DataConfig) -> DataSplits:
    """Loads the digits; ``data.subset_seed`` chooses the test images."""
    return digits(settings.subset_seed)


def digits(seed: int = 0) -> DataSplits:
    """Grey 8x8 pictures of ten digits (Alpaydin and Kaynak, 1998), of each 60 for testing and 114 for training.

    `DataSplits.imbalanced` makes the tail.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int64)
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    everything = ImageSplit(labels, np.repeat(grey[..., None], 3, axis=3))
    chosen = choose_subset(labels, [TEST_PER_CLASS + TRAIN_PER_CLASS] * 10, seed).reshape(10, -1)
    test, train = (np.sort(part.ravel()) for part in np.split(chosen, [TEST_PER_CLASS], axis=1))
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return DataSplits(everything.take(train), None, everything.take(test), names)
