"""Long-tailed subsets, held-out parts, shot groups, and the built-in digits."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers import golden

from longtail.data.imbalance import SHOTS, ShotThresholds, choose_subset, hold_out, imbalanced_counts, shot_groups
from longtail.data.sources.digits import digits
from longtail.data.splits import DataSplits, ImageSplit, as_paths
from longtail.utils.errors import InputError

PROFILES = {"exp": "exponential", "step": "step"}
SUBSETS = [
    (f"cifar{classes}_{profile}_{factor}", classes, profile, factor)
    for classes in (10, 100)
    for profile in PROFILES
    for factor in (0.1, 0.02, 0.01, 0.005)
]


def cifar_labels(classes: int) -> np.ndarray:
    """The labels that the golden indices belong to (NOTES.md, section 5)."""
    return np.random.default_rng(7).permutation(np.repeat(np.arange(classes), 50_000 // classes))


# ---- the original code ----


@pytest.mark.parametrize(("name", "classes", "profile", "factor"), SUBSETS)
def test_original_counts(name, classes, profile, factor):
    expected = golden.table("data/cifar_lt_counts.json")["counts"][name]
    assert imbalanced_counts(PROFILES[profile], 50_000 // classes, classes, factor) == expected


@pytest.mark.parametrize(("name", "classes", "profile", "factor"), SUBSETS)
def test_original_indices(name, classes, profile, factor):
    expected = golden.arrays("data/cifar_lt_indices.npz")[f"indices_{name}"]
    counts = imbalanced_counts(PROFILES[profile], 50_000 // classes, classes, factor)
    np.testing.assert_array_equal(choose_subset(cifar_labels(classes), counts), expected)


def test_original_indices_of_another_seed():
    expected = golden.arrays("data/cifar_lt_indices.npz")["indices_cifar100_exp_0.01_rand1"]
    counts = imbalanced_counts("exponential", 500, 100, 0.01)
    np.testing.assert_array_equal(choose_subset(cifar_labels(100), counts, seed=1), expected)


def test_original_order_of_everything():
    """What the original makes of an imbalance type it does not know: all images, shuffled class by class."""
    expected = golden.arrays("data/cifar_lt_indices.npz")["indices_cifar100_none_rand0"]
    np.testing.assert_array_equal(choose_subset(cifar_labels(100), [500] * 100), expected)


@pytest.mark.parametrize("classes", [10, 100])
def test_labels_of_the_golden_indices(classes):
    expected = golden.arrays("data/cifar_lt_indices.npz")[f"labels_cifar{classes}"]
    np.testing.assert_array_equal(cifar_labels(classes), expected)


@pytest.mark.parametrize(("convention", "limits"), [("ride_test", (100, 20)), ("swin_main", (99, 21))])
@pytest.mark.parametrize(
    "name",
    [
        *("cifar100_lt_exp_0.01", "cifar100_lt_exp_0.02", "cifar100_lt_exp_0.1", "cifar10_lt_exp_0.01"),
        *("imagenet_lt", "places_lt", "edge_values"),
    ],
)
def test_original_shot_groups(name, convention, limits):
    arrays = golden.arrays("data/shot_splits.npz")
    groups = shot_groups(arrays[f"counts_{name}"].tolist(), ShotThresholds(*limits))
    assert tuple(groups) == SHOTS
    for shot in SHOTS:
        np.testing.assert_array_equal(groups[shot], arrays[f"{name}/{convention}/{shot}_shot"])


# ---- properties ----


@pytest.mark.parametrize("profile", ["exponential", "step"])
@pytest.mark.parametrize("classes", [2, 3, 10, 101])
def test_counts_fall_from_the_largest_to_the_factor(profile, classes):
    counts = imbalanced_counts(profile, 1000, classes, 0.1)
    assert len(counts) == classes
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 1000
    assert counts[-1] == 100


def test_one_class_has_no_tail():
    assert imbalanced_counts("exponential", 10, 1, 0.01) == [10]


def test_factor_one_changes_nothing():
    assert imbalanced_counts("exponential", 37, 4, 1.0) == imbalanced_counts("step", 37, 4, 1.0) == [37] * 4


def test_chosen_subset():
    labels = np.random.default_rng(0).integers(0, 4, 200)
    chosen = choose_subset(labels, [30, 0, 7, 1])
    assert len(set(chosen.tolist())) == len(chosen)
    assert Counter(labels[chosen].tolist()) == {0: 30, 2: 7, 3: 1}
    np.testing.assert_array_equal(chosen, choose_subset(labels, [30, 0, 7, 1], seed=0))
    assert not np.array_equal(chosen, choose_subset(labels, [30, 0, 7, 1], seed=1))


def test_a_subset_leaves_the_global_generator_alone():
    np.random.seed(3)
    expected = np.random.RandomState(3).random_sample()
    choose_subset(np.arange(5), [1] * 5)
    assert np.random.random_sample() == expected


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.99])
def test_hold_out(fraction):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(5), [200, 50, 10, 2, 1]))
    kept, held = hold_out(labels, fraction)
    assert sorted([*kept.tolist(), *held.tolist()]) == list(range(len(labels)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held) > 0).all()
    in_all, in_held = np.bincount(labels), np.bincount(labels[held], minlength=5)
    assert in_held.tolist() == [min(round(fraction * n), n - 1) for n in in_all.tolist()]
    assert np.bincount(labels[kept], minlength=5).min() >= 1
    again = hold_out(labels, fraction)
    np.testing.assert_array_equal(again[1], held)
    assert not np.array_equal(hold_out(labels, fraction, seed=1)[1], held)


def test_hold_out_skips_absent_classes():
    kept, held = hold_out(np.array([0, 0, 2, 2, 2, 2]), 0.5)
    assert len(kept) == len(held) == 3


def dataset(counts: list[int]) -> DataSplits:
    labels = np.repeat(np.arange(len(counts)), counts)
    pixels = np.zeros((len(labels), 4, 4, 3), np.uint8)
    pixels[:, 0, 0, 0] = np.arange(len(labels)) % 256
    split = ImageSplit(labels, pixels)
    return DataSplits(split, None, split, tuple("abcdefgh"[: len(counts)]))


def test_imbalanced_data():
    data = dataset([50, 50, 50])
    tail = data.imbalanced("exponential", 0.1)
    assert tail.class_counts == imbalanced_counts("exponential", 50, 3, 0.1)
    assert tail.test is data.test
    # Pixels go with their labels: each picture says where it came from.
    np.testing.assert_array_equal(tail.train.pixels[:, 0, 0, 0] // 50, tail.train.labels)


def test_a_class_without_images_is_refused():
    with pytest.raises(InputError, match=r"imbalance_factor 0\.01 leaves the rarest of 3 classes without images"):
        dataset([50, 50, 50]).imbalanced("exponential", 0.01)
    with pytest.raises(InputError, match=r"at least 0\.02"):
        dataset([50, 50, 50]).imbalanced("step", 0.01)


def test_validation_part():
    parts = dataset([20, 10]).with_validation(0.1)
    assert parts.class_counts == [18, 9]
    assert np.bincount(parts.val.labels).tolist() == [2, 1]
    both = np.concatenate([parts.train.pixels[:, 0, 0, 0], parts.val.pixels[:, 0, 0, 0]])
    assert sorted(both.tolist()) == list(range(30))


def test_validation_part_is_refused_where_it_makes_no_sense():
    with pytest.raises(InputError, match=r"val_fraction 0\.01 holds out no image"):
        dataset([20, 10]).with_validation(0.01)
    with pytest.raises(InputError, match="has a validation part of its own"):
        dataset([20, 10]).with_validation(0.1).with_validation(0.1)


def test_classes_without_training_images_are_counted():
    data = dataset([3, 2])
    assert DataSplits(data.train, None, data.test, ("a", "b", "c")).class_counts == [3, 2, 0]


# ---- digits ----


def test_digits():
    data = digits()
    assert data.num_classes == 10
    assert data.val is None
    assert np.bincount(data.test.labels).tolist() == [60] * 10
    assert data.class_counts == [114] * 10
    assert data.train.pixels.shape[1:] == (8, 8, 3)
    assert data.train.pixels.dtype == np.uint8


def test_digits_are_the_real_ones():
    """Every picture is one of scikit-learn's, under its own label, and none is there twice."""
    from sklearn.datasets import load_digits

    data, bunch = digits(), load_digits()
    pictures = np.concatenate([data.train.pixels, data.test.pixels]).astype(float)
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert (pictures[..., :1] == pictures).all(), "grey"
    sixteenths = np.round(pictures[..., 0] * (16 / 255)).astype(int)
    ours = Counter((int(k), p.tobytes()) for k, p in zip(labels, sixteenths, strict=True))
    theirs = Counter((int(k), p.astype(int).tobytes()) for k, p in zip(bunch.target, bunch.images, strict=True))
    assert ours <= theirs
    assert ours.total() == 1740


def test_digits_for_testing_are_not_trained_on():
    data = digits()
    trained = {picture.tobytes() for picture in data.train.pixels}
    assert not trained & {picture.tobytes() for picture in data.test.pixels}


def test_digits_depend_on_the_seed():
    np.testing.assert_array_equal(digits(3).test.pixels, digits(3).test.pixels)
    assert not np.array_equal(digits(3).test.pixels, digits(4).test.pixels)


@pytest.mark.parametrize(("profile", "expected"), [("exponential", [4, 12, 40]), ("step", [4, 4, 40])])
def test_profile_follows_the_natural_order(profile, expected):
    """The most common class stays the most common one, wherever it stands."""
    labels = np.repeat([0, 1, 2], [5, 20, 40])
    split = ImageSplit(labels, np.zeros((65, 1, 1, 3), np.uint8))
    data = DataSplits(split, None, split, ("a", "b", "c")).imbalanced(profile, 0.1)
    assert data.class_counts == expected


def test_profile_asks_for_no_more_than_there_is():
    split = ImageSplit(np.repeat([0, 1, 2], [40, 6, 5]), np.zeros((51, 1, 1, 3), np.uint8))
    with pytest.raises(InputError, match=r"12 training images of class 'b', which has 6"):
        DataSplits(split, None, split, ("a", "b", "c")).imbalanced("exponential", 0.1)


def test_fingerprint_tells_splits_apart():
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    one = ImageSplit(np.array([0, 1]), pixels)
    assert one.fingerprint(Path()) == ImageSplit(np.array([0, 1]), pixels.copy()).fingerprint(Path())
    others = [ImageSplit(np.array([1, 1]), pixels), ImageSplit(np.array([0, 1]), pixels[::-1].copy()), one.take(np.array([0]))]
    assert len({split.fingerprint(Path()) for split in (one, *others)}) == 4
    here, moved = (ImageSplit(np.array([0]), paths=as_paths([root / "a/b.png"])) for root in (Path("x"), Path("/y")))
    assert here.fingerprint(Path("x")) == moved.fingerprint(Path("/y"))
