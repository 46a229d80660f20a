"""Imbalance profiles, subsets, held-out images and shot groups."""

from collections import Counter

import numpy as np
import pytest
from helpers import golden

from longtail.data.imbalance import SHOTS, ShotThresholds, choose_subset, hold_out, imbalanced_counts, shot_groups

PROFILES = {"exp": "exponential", "step": "step"}
SUBSETS = [
    (f"cifar{classes}_{profile}_{factor}", classes, profile, factor)
    for classes in (10, 100)
    for profile in PROFILES
    for factor in (0.1, 0.02, 0.01, 0.005)
]


def cifar_labels(classes: int) -> np.ndarray:
    """The labels of the golden indices."""
    return np.random.default_rng(7).permutation(np.repeat(np.arange(classes), 50_000 // classes))


# ---- against the original code ----


@pytest.mark.parametrize(("name", "classes", "profile", "factor"), SUBSETS)
def test_counts_of_the_original(name, classes, profile, factor):
    expected = golden.table("data/cifar_lt_counts.json")["counts"][name]
    assert imbalanced_counts(PROFILES[profile], 50_000 // classes, classes, factor) == expected


@pytest.mark.parametrize(("name", "classes", "profile", "factor"), SUBSETS)
def test_subsets_of_the_original(name, classes, profile, factor):
    expected = golden.arrays("data/cifar_lt_indices.npz")[f"indices_{name}"]
    counts = imbalanced_counts(PROFILES[profile], 50_000 // classes, classes, factor)
    np.testing.assert_array_equal(choose_subset(cifar_labels(classes), counts), expected)


def test_subset_of_the_original_with_another_seed():
    expected = golden.arrays("data/cifar_lt_indices.npz")["indices_cifar100_exp_0.01_rand1"]
    counts = imbalanced_counts("exponential", 500, 100, 0.01)
    np.testing.assert_array_equal(choose_subset(cifar_labels(100), counts, seed=1), expected)


def test_full_data_set_of_the_original():
    """For an unknown imbalance type, the original takes all images, shuffled class by class."""
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
def test_shot_groups_of_the_original(name, convention, limits):
    arrays = golden.arrays("data/shot_splits.npz")
    groups = shot_groups(arrays[f"counts_{name}"].tolist(), ShotThresholds(*limits))
    assert tuple(groups) == SHOTS
    for shot in SHOTS:
        np.testing.assert_array_equal(groups[shot], arrays[f"{name}/{convention}/{shot}_shot"])


# ---- properties ----


@pytest.mark.parametrize("profile", ["exponential", "step"])
@pytest.mark.parametrize("classes", [2, 3, 10, 101])
def test_counts_decrease_to_the_factor(profile, classes):
    counts = imbalanced_counts(profile, 1000, classes, 0.1)
    assert len(counts) == classes
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 1000
    assert counts[-1] == 100


def test_counts_of_a_single_class():
    assert imbalanced_counts("exponential", 10, 1, 0.01) == [10]


def test_factor_one_is_balanced():
    assert imbalanced_counts("exponential", 37, 4, 1.0) == imbalanced_counts("step", 37, 4, 1.0) == [37] * 4


def test_subset_has_the_counts_and_depends_on_the_seed():
    labels = np.random.default_rng(0).integers(0, 4, 200)
    chosen = choose_subset(labels, [30, 0, 7, 1])
    assert len(set(chosen.tolist())) == len(chosen)
    assert Counter(labels[chosen].tolist()) == {0: 30, 2: 7, 3: 1}
    np.testing.assert_array_equal(chosen, choose_subset(labels, [30, 0, 7, 1], seed=0))
    assert not np.array_equal(chosen, choose_subset(labels, [30, 0, 7, 1], seed=1))


def test_subset_does_not_use_the_global_generator():
    np.random.seed(3)
    expected = np.random.RandomState(3).random_sample()
    choose_subset(np.arange(5), [1] * 5)
    assert np.random.random_sample() == expected


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.99])
def test_hold_out_takes_a_fraction_of_each_class(fraction):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(5), [200, 50, 10, 2, 1]))
    kept, held_out = hold_out(labels, fraction)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(held_out) > 0).all()
    all_counts, held_out_counts = np.bincount(labels), np.bincount(labels[held_out], minlength=5)
    assert held_out_counts.tolist() == [min(round(fraction * n), n - 1) for n in all_counts.tolist()]
    assert np.bincount(labels[kept], minlength=5).min() >= 1
    np.testing.assert_array_equal(hold_out(labels, fraction)[1], held_out)
    assert not np.array_equal(hold_out(labels, fraction, seed=1)[1], held_out)


def test_hold_out_allows_empty_classes():
    kept, held_out = hold_out(np.array([0, 0, 2, 2, 2, 2]), 0.5)
    assert len(kept) == len(held_out) == 3
