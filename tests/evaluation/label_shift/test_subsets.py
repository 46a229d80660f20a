"""Long-tailed parts of a test set."""

import numpy as np
import pytest
from helpers import golden

from longtail.evaluation.label_shift.subsets import RATIOS, label_shift, label_shifts
from longtail.utils.errors import InputError

TRAINING = [40, 500, 12, 40, 3]
RANKING = [1, 0, 3, 2, 4]  # classes 0 and 3 are as common
LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(5), 60))


@pytest.mark.parametrize("ratio", [1, 2, 5.5, 50, 60])
def test_counts_are_the_formula(ratio):
    forward, backward = (label_shift(LABELS, TRAINING, ratio, direction) for direction in ("forward", "backward"))
    slow = [max(1, int(60 * (1 / ratio) ** (rank / 4))) for rank in range(5)]
    assert [forward.counts[k] for k in RANKING] == slow
    assert [backward.counts[k] for k in reversed(RANKING)] == slow
    for part in (forward, backward):
        assert np.bincount(LABELS[part.positions], minlength=5).tolist() == list(part.counts)
        assert len(set(part.positions)) == len(part.positions)
        assert part.prior.tolist() == pytest.approx([n / sum(part.counts) for n in part.counts])


@pytest.mark.parametrize(("classes", "ratio"), [(10, 10), (10, 50), (10, 100), (100, 10), (100, 50), (100, 100)])
def test_forward_parts_are_chosen_as_by_the_original(classes, ratio):
    """SADE takes the class that makes CIFAR-LT to the test images, too, and CIFAR-LT's classes are in their order."""
    arrays = golden.arrays("data/cifar_lt_indices.npz")
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(classes), 50000 // classes))
    ours = label_shift(labels, range(classes, 0, -1), ratio)
    np.testing.assert_array_equal(ours.positions, arrays[f"indices_cifar{classes}_exp_{1 / ratio:g}"])


def test_classes_that_are_as_common_rank_in_their_own_order():
    counts = label_shift(np.repeat(np.arange(100), 60), [30, 5] * 50, 50).counts
    assert list(counts[::2] + counts[1::2]) == sorted(counts, reverse=True)


def test_a_seed_chooses_the_images_and_nothing_else():
    one, again, other = (label_shift(LABELS, TRAINING, 5, "backward", seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.positions, again.positions)
    assert set(one.positions) != set(other.positions)
    assert one.counts == other.counts


def test_all_parts_in_order():
    parts = label_shifts(LABELS, TRAINING)
    assert list(parts) == [
        *(f"forward-{ratio}" for ratio in (50, 25, 10, 5, 2)),
        "uniform",
        *(f"backward-{ratio}" for ratio in (2, 5, 10, 25, 50)),
    ]
    assert sorted(parts["uniform"].positions) == list(range(300))
    commonest = [part.prior[1] for part in parts.values()]
    assert (np.diff(commonest) < 0).all()
    for ratio in RATIOS:
        np.testing.assert_array_equal(
            parts[f"backward-{ratio}"].positions, label_shift(LABELS, TRAINING, ratio, "backward").positions
        )


def test_uneven_test_sets_give_what_their_rarest_class_has():
    labels = np.repeat(np.arange(3), [9, 4, 6])
    assert label_shift(labels, [9, 5, 1], 1).counts == (4, 4, 4)
    assert label_shift(labels, [9, 5, 1], 4).counts == (4, 2, 1)


def test_what_leaves_a_class_without_images_is_refused():
    with pytest.raises(InputError, match="ratio 61: from 1 to 60"):
        label_shift(LABELS, TRAINING, 61)
    with pytest.raises(InputError, match=r"ratio 0\.5: from 1"):
        label_shift(LABELS, TRAINING, 0.5)
    with pytest.raises(InputError, match="direction 'sideways'"):
        label_shift(LABELS, TRAINING, 2, "sideways")
    assert min(label_shift(np.repeat(np.arange(3), 49), [3, 2, 1], 49).counts) == 1
