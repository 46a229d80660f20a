"""Long-tailed subsets of a test set."""

import numpy as np
import pytest
from helpers import golden

from longtail.evaluation.label_shift.subsets import RATIOS, label_shift, label_shifts, valid_ratios
from longtail.utils.errors import InputError

TRAINING = [40, 500, 12, 40, 3]
RANKING = [1, 0, 3, 2, 4]  # classes 0 and 3 are equally common
LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(5), 60))


@pytest.mark.parametrize("ratio", [1, 2, 5.5, 50, 60])
def test_counts_equal_the_formula(ratio):
    forward, backward = (label_shift(LABELS, TRAINING, ratio, direction) for direction in ("forward", "backward"))
    slow = [max(1, int(60 * (1 / ratio) ** (rank / 4))) for rank in range(5)]
    assert [forward.counts[k] for k in RANKING] == slow
    assert [backward.counts[k] for k in reversed(RANKING)] == slow
    for subset in (forward, backward):
        assert np.bincount(LABELS[subset.positions], minlength=5).tolist() == list(subset.counts)
        assert len(set(subset.positions)) == len(subset.positions)
        assert subset.prior.tolist() == pytest.approx([n / sum(subset.counts) for n in subset.counts])


@pytest.mark.parametrize(("classes", "ratio"), [(10, 10), (10, 50), (10, 100), (100, 10), (100, 50), (100, 100)])
def test_forward_subsets_equal_the_original(classes, ratio):
    """SADE makes them with its code for CIFAR-LT, in which the classes are sorted by size."""
    arrays = golden.arrays("data/cifar_lt_indices.npz")
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(classes), 50000 // classes))
    ours = label_shift(labels, range(classes, 0, -1), ratio)
    np.testing.assert_array_equal(ours.positions, arrays[f"indices_cifar{classes}_exp_{1 / ratio:g}"])


def test_equally_common_classes_keep_their_order():
    counts = label_shift(np.repeat(np.arange(100), 60), [30, 5] * 50, 50).counts
    assert list(counts[::2] + counts[1::2]) == sorted(counts, reverse=True)


def test_all_subsets_in_order():
    subsets = label_shifts(LABELS, TRAINING)
    assert list(subsets) == [
        *(f"forward-{ratio}" for ratio in (50, 25, 10, 5, 2)),
        "uniform",
        *(f"backward-{ratio}" for ratio in (2, 5, 10, 25, 50)),
    ]
    assert sorted(subsets["uniform"].positions) == list(range(300))
    most_common = [subset.prior[1] for subset in subsets.values()]
    assert (np.diff(most_common) < 0).all()
    for ratio in RATIOS:
        np.testing.assert_array_equal(
            subsets[f"backward-{ratio}"].positions, label_shift(LABELS, TRAINING, ratio, "backward").positions
        )


def test_the_rarest_class_of_the_test_set_limits_all():
    labels = np.repeat(np.arange(3), [9, 4, 6])
    assert label_shift(labels, [9, 5, 1], 1).counts == (4, 4, 4)
    assert label_shift(labels, [9, 5, 1], 4).counts == (4, 2, 1)


def test_invalid_arguments():
    with pytest.raises(InputError, match=r"ratio is 61; .* 1 to 60"):
        label_shift(LABELS, TRAINING, 61)
    with pytest.raises(InputError, match=r"ratio is 0\.5; .* 1 to 60"):
        label_shift(LABELS, TRAINING, 0.5)
    with pytest.raises(InputError, match="'sideways'"):
        label_shift(LABELS, TRAINING, 2, "sideways")


def test_every_class_keeps_an_image_at_the_largest_ratio():
    assert min(label_shift(np.repeat(np.arange(3), 49), [3, 2, 1], 49).counts) == 1


def test_valid_ratios():
    assert valid_ratios(LABELS, "abcde") == [50, 25, 10, 5, 2]
    assert valid_ratios(np.repeat(np.arange(3), 7), "abc") == [5, 2]
    with pytest.raises(InputError, match=r"class 'f' has 0 .* 2"):
        valid_ratios(LABELS, "abcdef")
