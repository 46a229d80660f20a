"""Splits of a data set: long-tailed subsets, validation splits, fingerprints."""

from pathlib import Path

import numpy as np
import pytest

from longtail.data.imbalance import imbalanced_counts
from longtail.data.splits import DataSplits, ImageSplit
from longtail.utils.errors import InputError


def dataset(counts):
    """Images whose first value is their number."""
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(labels), 1, 1, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(labels))
    split = ImageSplit(labels, pixels)
    return DataSplits(split, None, split, tuple("abcdefgh"[: len(counts)]))


def numbers(split):
    return split.pixels[:, 0, 0, 0].tolist()


# ---- long tails ----


def test_long_tailed_subset():
    data = dataset([50, 50, 50])
    tail = data.imbalanced("exponential", 0.1)
    assert tail.class_counts == imbalanced_counts("exponential", 50, 3, 0.1)
    assert tail.test is data.test
    assert tail.val is None
    assert [number // 50 for number in numbers(tail.train)] == tail.train.labels.tolist()


@pytest.mark.parametrize(("profile", "expected"), [("exponential", [4, 12, 40]), ("step", [4, 4, 40])])
def test_most_common_class_stays_the_most_common(profile, expected):
    assert dataset([5, 20, 40]).imbalanced(profile, 0.1).class_counts == expected


def test_spare_images_become_the_validation_split():
    data = dataset([50, 50, 50])
    tail = data.imbalanced("exponential", 0.1, seed=2, spare=20)
    assert numbers(tail.train) == numbers(data.imbalanced("exponential", 0.1, seed=2).train)
    assert np.bincount(tail.val.labels, minlength=3).tolist() == [0, 20, 20]
    assert numbers(tail.val) == sorted(set(numbers(tail.val)) - set(numbers(tail.train)))


@pytest.mark.parametrize("profile", ["exponential", "step"])
def test_class_without_images_is_refused(profile):
    with pytest.raises(InputError, match=r"data\.imbalance_factor is 0\.01.* at least 0\.02"):
        dataset([50, 50, 50]).imbalanced(profile, 0.01)


def test_class_with_too_few_images_is_named():
    with pytest.raises(InputError, match=r"12 training images of class 'b', which has 6"):
        dataset([40, 6, 5]).imbalanced("exponential", 0.1)


# ---- splits ----


def test_validation_split_is_held_out():
    splits = dataset([20, 10]).with_validation(0.1)
    assert splits.class_counts == [18, 9]
    assert np.bincount(splits.val.labels).tolist() == [2, 1]
    assert sorted(numbers(splits.train) + numbers(splits.val)) == list(range(30))


def test_impossible_validation_split_is_refused():
    with pytest.raises(InputError, match=r"data\.val_fraction is 0\.01"):
        dataset([20, 10]).with_validation(0.01)
    with pytest.raises(InputError, match=r"data\.val_fraction is 0\.2.*has a validation split"):
        dataset([20, 10]).with_validation(0.1).with_validation(0.2)


def test_classes_without_training_images_are_counted():
    data = dataset([3, 2])
    assert DataSplits(data.train, None, data.test, ("a", "b", "c")).class_counts == [3, 2, 0]


def test_splits_by_name():
    data = dataset([20, 10])
    assert data.splits == {"train": data.train, "test": data.test}
    assert list(data.with_validation(0.1).splits) == ["train", "val", "test"]


def test_fingerprint_depends_on_all_images_and_labels():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    split = ImageSplit(np.array([0, 1]), pixels)
    assert split.fingerprint(Path()) == ImageSplit(np.array([0, 1]), pixels.copy()).fingerprint(Path())
    others = [ImageSplit(np.array([1, 1]), pixels), ImageSplit(np.array([0, 1]), pixels[::-1].copy())]
    others.append(split.take(np.array([0])))
    assert len({other.fingerprint(Path()) for other in (split, *others)}) == 4


def test_fingerprint_of_files_does_not_depend_on_the_root():
    first, moved = (
        ImageSplit(np.array([0]), paths=np.array([root / "a/b.png"], dtype=object)) for root in (Path("x"), Path("/y"))
    )
    assert first.fingerprint(Path("x")) == moved.fingerprint(Path("/y"))
