"""Confidence intervals and tests, compared with SciPy and with their definitions."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from longtail.evaluation.significance import balanced_interval, difference_interval, holm, mcnemar, wilson_interval


def test_wilson_intervals_are_those_of_scipy():
    cases = [(0, 1), (1, 1), (0, 20), (20, 20), (7, 20), (412, 600), (5, 100_000)]
    low, high = wilson_interval(*zip(*cases, strict=True))
    for k, (hits, total) in enumerate(cases):
        expected = binomtest(hits, total).proportion_ci(0.95, "wilson")
        assert (low[k], high[k]) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert low[k] <= hits / total <= high[k]
    low, high = wilson_interval(7, 20)
    assert (float(low), float(high)) == pytest.approx(tuple(binomtest(7, 20).proportion_ci(0.95, "wilson")))


def test_classes_without_images_have_no_interval():
    low, high = wilson_interval([0, 3], [0, 4])
    assert np.isnan([low[0], high[0]]).all()
    assert low[1] < 0.75 < high[1]


def test_the_balanced_interval_combines_the_intervals_of_the_classes():
    hits, totals = [10, 3, 0, 0], [20, 4, 2, 0]
    shares = [10 / 20, 3 / 4, 0.0]
    limits = [binomtest(hits[k], totals[k]).proportion_ci(0.95, "wilson") for k in range(3)]
    mean = sum(shares) / 3
    down = math.sqrt(sum((share - limit.low) ** 2 for share, limit in zip(shares, limits, strict=True))) / 3
    up = math.sqrt(sum((share - limit.high) ** 2 for share, limit in zip(shares, limits, strict=True))) / 3
    assert balanced_interval(hits, totals) == pytest.approx((mean - down, mean + up))
    assert balanced_interval([4, 4], [4, 4])[1] == 1
    # For one class it is that class's interval.
    assert balanced_interval([7], [20]) == pytest.approx(tuple(binomtest(7, 20).proportion_ci(0.95, "wilson")))


def test_the_balanced_interval_contains_the_accuracy_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    accuracies, totals = random.uniform(0.3, 0.9, 10), np.arange(10, 60, 5)
    limits = [balanced_interval(random.binomial(totals, accuracies), totals) for _ in range(1000)]
    inside = np.mean([low <= accuracies.mean() <= high for low, high in limits])
    assert 0.92 < inside < 0.98


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 19), (0, 9)])
def test_mcnemar_is_the_exact_binomial_test(first, second):
    if first + second:
        assert mcnemar(first, second) == pytest.approx(binomtest(first, first + second).pvalue)
    smaller = sum(math.comb(first + second, k) for k in range(min(first, second) + 1))
    assert mcnemar(first, second) == pytest.approx(min(1, 2 * smaller / 2 ** (first + second)))
    assert mcnemar([first, second], [second, first]) == pytest.approx([mcnemar(first, second)] * 2)


def test_holm_multiplies_each_p_value_by_the_number_of_larger_ones():
    p = [0.01, 0.04, 0.03, 0.005, 0.9]
    ordered, adjusted = sorted(p), {}
    for rank, value in enumerate(ordered):
        adjusted[value] = min(1, max((5 - i) * ordered[i] for i in range(rank + 1)))
    assert holm(p) == pytest.approx([adjusted[value] for value in p])
    assert holm([]).tolist() == []


def test_the_interval_of_a_difference():
    low, high = difference_interval(30, 10, 600)
    assert low < 20 / 600 < high
    assert difference_interval(10, 30, 600) == pytest.approx((-high, -low))
    same = difference_interval(0, 0, 50)
    assert same[0] < 0 < same[1]  # no difference on 50 images does not prove that there is none
    # About that of independent images: the variance of their differences, which are 1, 0 or -1.
    values = np.array([1] * 3000 + [-1] * 1000 + [0] * 56000)
    expected = values.mean() + np.array([-1.96, 1.96]) * values.std() / math.sqrt(len(values))
    assert difference_interval(3000, 1000, 60000) == pytest.approx(tuple(expected), rel=1e-3)
