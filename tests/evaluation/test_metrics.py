import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from helpers import golden
from helpers.scores import are_close, average, slow_scores

from longtail.data.imbalance import SHOTS, ShotThresholds, shot_groups
from longtail.evaluation.metrics import Evaluation, calibration, confusion_counts, evaluate_logits

CONVENTIONS = {"ride_test": ShotThresholds(100, 20), "swin_main": ShotThresholds(99, 21)}


def slow_evaluation(logits, labels, class_counts, thresholds, bins):
    """All metrics from nested lists, image by image."""
    num_classes, num_experts = len(class_counts), len(logits[0])
    ensemble = [[average(e[k] for e in image) for k in range(num_classes)] for image in logits]
    predicted = [row.index(max(row)) for row in ensemble]
    by_expert = [[image[e].index(max(image[e])) for image in logits] for e in range(num_experts)]

    likelihoods, confidences = [], []
    for row, label, prediction in zip(ensemble, labels, predicted, strict=True):
        normaliser = math.fsum(math.exp(x) for x in row)
        likelihoods.append(-math.log(math.exp(row[label]) / normaliser))
        confidences.append(math.exp(row[prediction]) / normaliser)
    ece = 0.0
    for m in range(1, bins + 1):
        inside = [i for i, c in enumerate(confidences) if (m - 1) / bins < c <= m / bins]
        if inside:
            gap = average(predicted[i] == labels[i] for i in inside) - average(confidences[i] for i in inside)
            ece += len(inside) / len(labels) * abs(gap)

    pairs = [(a, b) for a in range(num_experts) for b in range(a)]
    top5 = [y in sorted(range(num_classes), key=lambda k: -row[k])[:5] for row, y in zip(ensemble, labels, strict=True)]
    per_class = [average(p == k for p, y in zip(predicted, labels, strict=True) if y == k) for k in range(num_classes)]
    confusion = [[0] * num_classes for _ in range(num_classes)]
    for y, p in zip(labels, predicted, strict=True):
        confusion[y][p] += 1
    return {
        **slow_scores(predicted, labels, class_counts, thresholds),
        "num_images": len(labels),
        "top5": average(top5) if num_classes > 5 else None,
        "nll": average(likelihoods),
        "ece": ece,
        "disagreement": average(
            average(p != q for p, q in zip(by_expert[a], by_expert[b], strict=True)) for a, b in pairs
        ),
        "per_class": per_class,
        "test_counts": [labels.count(k) for k in range(num_classes)],
        "experts": [slow_scores(expert, labels, class_counts, thresholds) for expert in by_expert],
        "confusion": confusion,
    }


def example(num_images, num_experts, num_classes, seed=0, tested=None):
    """Logits whose predictions are correct about half of the time, and labels of the tested classes, some rare."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.zeros(num_classes)
    for position, k in enumerate(range(num_classes) if tested is None else tested):
        weights[k] = 1 / (1 + position)
    labels = weights.multinomial(num_images, replacement=True, generator=generator)
    logits = torch.randn(num_images, num_experts, num_classes, generator=generator)
    logits[torch.arange(num_images), :, labels] += 1.5
    return logits, labels


CASES = {
    # name: (images, experts, class counts, tested classes or None for all)
    "all groups": (300, 3, [500, 200, 101, 100, 50, 20, 19, 5, 1], None),
    "imbalanced test, classes missing": (200, 3, [500, 200, 101, 100, 50, 20, 19, 5, 1], [1, 4, 5, 7]),
    "no few-shot class": (150, 2, [400, 300, 200, 100, 80, 40], None),
    "few-shot classes without test images": (150, 2, [400, 300, 200, 100, 8, 4], [0, 2, 3]),
    "two classes, one expert": (60, 1, [90, 10], None),
    "five classes": (60, 4, [900, 90, 50, 9, 0], None),
    "one image": (1, 2, [30, 20, 10], None),
    "more images than a block": (1500, 2, [150, 120, 60, 30, 15, 7], None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("thresholds", CONVENTIONS.values())
def test_metrics_equal_a_slow_version(case, thresholds):
    num_images, num_experts, counts, tested = CASES[case]
    logits, labels = example(num_images, num_experts, len(counts), tested=tested)
    ours = evaluate_logits(logits, labels, counts, thresholds=thresholds, bins=10)
    slow = slow_evaluation(logits.double().tolist(), labels.tolist(), counts, thresholds, 10)
    numbers = {name: getattr(ours, name) for name in slow}
    numbers["experts"] = [dataclasses.asdict(scores) for scores in ours.experts]
    numbers["confusion"] = ours.confusion.tolist()
    assert are_close({k: list(v) if isinstance(v, tuple) else v for k, v in numbers.items()}, slow)
    assert ours.confusion.dtype == np.int64


def test_groups_without_test_images_are_none():
    logits, labels = example(50, 2, 4, tested=[0, 1])
    result = evaluate_logits(logits, labels, [300, 200, 50, 10])
    assert result.many is not None
    assert (result.medium, result.few) == (None, None)
    assert (result.experts[0].medium, result.experts[1].few) == (None, None)
    assert result.per_class[2:] == (None, None)
    assert result.shots == ("many", "many", "medium", "few")


def test_confusion_rows_are_true_classes():
    predictions, labels = torch.tensor([1, 1, 0, 2]), torch.tensor([0, 0, 0, 2])
    assert confusion_counts(predictions, labels, 4).tolist() == [[1, 2, 0, 0], [0] * 4, [0, 0, 1, 0], [0] * 4]


def test_calibration_of_five_images():
    confidences = torch.tensor([0.3, 0.4, 0.5, 0.9, 1.0], dtype=torch.float64)
    correct = torch.tensor([True, False, True, True, False])
    bins = calibration(confidences, correct, bins=2)  # 0.5 belongs to the lower bin
    assert bins.counts.tolist() == [3, 2]
    assert bins.confidence.tolist() == pytest.approx([0.4, 0.95])
    assert bins.accuracy.tolist() == pytest.approx([2 / 3, 0.5])
    assert bins.error == pytest.approx(3 / 5 * (2 / 3 - 0.4) + 2 / 5 * (0.95 - 0.5))
    empty = calibration(confidences, correct, bins=100)
    assert empty.counts.sum() == 5
    assert all(values.isfinite().all() for values in empty)


def test_a_perfect_model():
    labels = torch.arange(12) % 6
    logits = 1e4 * torch.nn.functional.one_hot(labels, 6).float()[:, None].expand(-1, 3, -1)
    result = evaluate_logits(logits, labels, [500, 200, 50, 30, 10, 5])
    assert (result.accuracy, result.balanced, result.many, result.medium, result.few, result.top5) == (1,) * 6
    assert (result.nll, result.ece, result.disagreement) == (0, 0, 0)
    assert result.frequent_confusions() == []


def test_nll_of_large_logits():
    logits, labels = torch.tensor([[[3e4, 3e4 + 1, 0.0]]]), torch.tensor([0])
    result = evaluate_logits(logits, labels, [1, 1, 1])
    assert result.nll == pytest.approx(math.log1p(math.e), rel=1e-9)
    far = evaluate_logits(torch.tensor([[[-1e5, 1e5, 0.0]]]), labels, [1, 1, 1])
    assert far.nll == pytest.approx(2e5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_have_accuracy_but_no_nll(bad):
    logits, labels = example(40, 2, 6)
    good = evaluate_logits(logits[1:], labels[1:], [50] * 6)
    logits[0, 0, 3] = bad
    result = evaluate_logits(logits, labels, [50] * 6)
    assert (result.nll, result.ece, result.calibration) == (None, None, None)
    assert result.confusion.sum() == 40
    correct = good.accuracy * 39 + (labels[0] == 3)  # the class of this logit is predicted
    assert result.accuracy * 40 == pytest.approx(float(correct))
    json.dumps(result.as_dict(), allow_nan=False)


def test_a_logit_of_minus_infinity_has_probability_zero():
    logits, labels = example(40, 2, 6, tested=[0, 1, 2])
    logits[:, :, 5] = -math.inf
    result = evaluate_logits(logits, labels, [50] * 6)
    assert result.nll is not None
    assert math.isfinite(result.nll)
    without = evaluate_logits(logits[:, :, :5], labels, [50] * 5)
    assert (result.nll, result.ece) == (pytest.approx(without.nll), pytest.approx(without.ece))


@pytest.mark.parametrize("case", CASES)
def test_json_round_trip(case):
    num_images, num_experts, counts, tested = CASES[case]
    result = evaluate_logits(*example(num_images, num_experts, len(counts), tested=tested), counts)
    plain = result.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    names = {field.name for field in dataclasses.fields(result)} - {"confusion"}
    assert names == set(plain) - {"confusions"}
    again = Evaluation.from_dict(json.loads(json.dumps(plain)), result.confusion)
    assert again.as_dict() == plain
    assert all(torch.equal(*pair) for pair in zip(again.calibration, result.calibration, strict=True))
    assert (again.thresholds, again.average, again.shots) == (result.thresholds, result.average, result.shots)
    assert len(plain["experts"]) == num_experts
    assert sum(plain["calibration"]["counts"]) == num_images


def test_frequent_confusions_are_sorted_errors():
    logits, labels = example(800, 1, 8)
    result = evaluate_logits(logits, labels, [50] * 8)
    listed = result.frequent_confusions(20)
    errors = result.confusion.copy()
    np.fill_diagonal(errors, 0)
    assert len(listed) == 20
    assert [error["count"] for error in listed] == sorted(errors.ravel().tolist(), reverse=True)[:20]
    assert all(result.confusion[w["true"], w["predicted"]] == w["count"] for w in listed)
    assert all(w["true"] != w["predicted"] for w in listed)


def test_input_is_unchanged():
    logits, labels = example(30, 3, 7)
    before = logits.clone(), labels.clone()
    evaluate_logits(logits, labels, [50] * 7)
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize(
    ("labels", "counts", "message"),
    [
        ([], [1, 1, 1], "0 images"),
        ([0, 1, 2], [1, 1, 1], r"2 images .* \(3,\)"),
        ([0, 1], [1, 1], "class_counts .* 2 .* 3"),
        ([0, 3], [1, 1, 1], "from 0 to 2"),
        ([-1, 0], [1, 1, 1], "from 0 to 2"),
    ],
)
def test_arguments_that_do_not_match(labels, counts, message):
    logits = torch.zeros(2 if labels else 0, 1, 3)
    with pytest.raises(ValueError, match=message):
        evaluate_logits(logits, torch.tensor(labels, dtype=torch.int64), counts)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_shot_groups_of_the_original_code(convention):
    arrays, thresholds = golden.arrays("data/shot_splits.npz"), CONVENTIONS[convention]
    data_sets = [name.removeprefix("counts_") for name in arrays if name.startswith("counts_")]
    assert data_sets
    for name in data_sets:
        counts = arrays[f"counts_{name}"].tolist()
        masks = shot_groups(counts, thresholds)
        for shot in SHOTS:
            assert np.array_equal(masks[shot], arrays[f"{name}/{convention}/{shot}_shot"]), (name, shot)
        logits, labels = torch.zeros(1, 1, len(counts)), torch.tensor([0])
        shots = evaluate_logits(logits, labels, counts, thresholds=thresholds).shots
        assert all(masks[shot][k] for k, shot in enumerate(shots)), name
