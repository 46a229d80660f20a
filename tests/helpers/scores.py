"""Accuracies computed the slow way, and comparisons that accept None and nan."""

import math

import pytest

from longtail.data.imbalance import ShotThresholds


def average(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else None


def slow_scores(predicted, labels, class_counts, thresholds=ShotThresholds()):  # noqa: B008
    accuracy_of = {}
    for k in range(len(class_counts)):
        hits = [p == k for p, y in zip(predicted, labels, strict=True) if y == k]
        if hits:
            accuracy_of[k] = sum(hits) / len(hits)

    def group(is_member):
        return average(accuracy for k, accuracy in accuracy_of.items() if is_member(class_counts[k]))

    return {
        "accuracy": average(p == y for p, y in zip(predicted, labels, strict=True)),
        "balanced": average(accuracy_of.values()),
        "many": group(lambda n: n > thresholds.many_above),
        "medium": group(lambda n: thresholds.few_below <= n <= thresholds.many_above),
        "few": group(lambda n: n < thresholds.few_below),
    }


def are_close(first, second):
    """Whether numbers, lists or dicts are equal up to rounding; None equals only None."""
    if isinstance(second, dict):
        assert set(second) == set(first)
        return all(are_close(first[key], second[key]) for key in second)
    if isinstance(second, list):
        return len(first) == len(second) and all(map(are_close, first, second))
    if second is None or first is None:
        return second is first
    return first == pytest.approx(second, rel=1e-6, abs=1e-9)
