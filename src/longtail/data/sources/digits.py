"""The handwritten digits of scikit-learn: real data that need no download."""

import numpy as np

from longtail.config.schema import DataConfig
from longtail.data.imbalance import choose_subset
from longtail.data.sources import register
from longtail.data.splits import DataSplits, ImageSplit
from longtail.utils.errors import InputError

TEST_PER_CLASS = 60
TRAIN_PER_CLASS = 114  # all that the rarest digit has left
CLASS_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@register("digits", num_classes=10, image_size=8)
def load(settings: DataConfig) -> DataSplits:
    """Loads the digits; ``data.subset_seed`` chooses the test images.

    Raises:
        InputError: a folder is set, which the digits do not need; images of one's own are meant.
    """
    if settings.root != DataConfig.root:
        raise InputError(
            f"data.root is '{settings.root}', but the digits are built in; your own images need data.name 'folder', or "
            "longtail train FOLDER"
        )
    return digits(settings.subset_seed)


def digits(seed: int = 0) -> DataSplits:
    """Returns images of 8 x 8 pixels, balanced: of each digit 114 for training and 60 for testing.

    Source: Alpaydin and Kaynak, 1998. For a long tail, see `DataSplits.imbalanced`.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = ImageSplit(bunch.target.astype(np.int64), np.repeat(grey[..., None], 3, axis=3))
    chosen = choose_subset(images.labels, [TEST_PER_CLASS + TRAIN_PER_CLASS] * 10, seed).reshape(10, -1)
    test, train = (np.sort(positions.ravel()) for positions in np.split(chosen, [TEST_PER_CLASS], axis=1))
    return DataSplits(images.take(train), None, images.take(test), CLASS_NAMES)
