"""Accuracies the slow way, and comparisons that take None and nan."""

import math

import pytest


def average(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else None


def slow_scores(predicted, labels, class_counts, many_above, few_below):
    accuracy_of = {}
    for k in range(len(class_counts)):
        hits = [p == k for p, y in zip(predicted, labels, strict=True) if y == k]
        if hits:
            accuracy_of[k] = sum(hits) / len(hits)

    def group(test):
        return average(a for k, a in accuracy_of.items() if test(class_counts[k]))

    return {
        "accuracy": average(p == y for p, y in zip(predicted, labels, strict=True)),
        "balanced": average(accuracy_of.values()),
        "many": group(lambda n: n > many_above),
        "medium": group(lambda n: few_below <= n <= many_above),
        "few": group(lambda n: n < few_below),
    }


def same(ours, slow):
    """Equal but for rounding; None only equals None."""
    if isinstance(slow, dict):
        assert set(slow) == set(ours)
        return all(same(ours[key], slow[key]) for key in slow)
    if isinstance(slow, list):
        return len(ours) == len(slow) and all(map(same, ours, slow))
    if slow is None or ours is None:
        return slow is ours
    return ours == pytest.approx(slow, rel=1e-6, abs=1e-9)
