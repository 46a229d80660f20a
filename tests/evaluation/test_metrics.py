import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.scores import average, same, slow_scores

from longtail.data.imbalance import SHOTS, ShotThresholds, shot_groups
from longtail.evaluation.metrics import calibration, confusion_counts, evaluate_logits

GOLDEN = Path(__file__).parents[2] / "shared/golden"
CONVENTIONS = {"ride_test": (100, 20), "swin_main": (99, 21)}


def slow_evaluation(logits, labels, class_counts, many_above, few_below, bins):
    """The same from nested lists, image by image."""
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
        **slow_scores(predicted, labels, class_counts, many_above, few_below),
        "num_images": len(labels),
        "top5": average(top5) if num_classes > 5 else None,
        "nll": average(likelihoods),
        "ece": ece,
        "disagreement": average(
            average(p != q for p, q in zip(by_expert[a], by_expert[b], strict=True)) for a, b in pairs
        ),
        "per_class": per_class,
        "test_counts": [labels.count(k) for k in range(num_classes)],
        "experts": [slow_scores(own, labels, class_counts, many_above, few_below) for own in by_expert],
        "confusion": confusion,
    }


def example(num_images, num_experts, num_classes, seed=0, tested=None):
    """Logits that are right about half of the time, and labels of the ``tested`` classes, some of them rare."""
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
@pytest.mark.parametrize("limits", [(100, 20), (99, 21)])
def test_every_number_agrees_with_a_slow_version(case, limits):
    num_images, num_experts, counts, tested = CASES[case]
    logits, labels = example(num_images, num_experts, len(counts), tested=tested)
    ours = evaluate_logits(logits, labels, counts, many_above=limits[0], few_below=limits[1], bins=10)
    slow = slow_evaluation(logits.double().tolist(), labels.tolist(), counts, *limits, 10)
    numbers = {name: getattr(ours, name) for name in slow}
    numbers["experts"] = [dataclasses.asdict(scores) for scores in ours.experts]
    numbers["confusion"] = ours.confusion.tolist()
    assert same({k: list(v) if isinstance(v, tuple) else v for k, v in numbers.items()}, slow)
    assert ours.confusion.dtype == np.int64


def test_empty_groups_are_none_and_not_zero():
    logits, labels = example(50, 2, 4, tested=[0, 1])
    result = evaluate_logits(logits, labels, [300, 200, 50, 10])
    assert result.many is not None
    assert (result.medium, result.few) == (None, None)  # they have classes, but none of these is tested
    assert (result.experts[0].medium, result.experts[1].few) == (None, None)
    assert result.per_class[2:] == (None, None)
    assert result.shots == ("many", "many", "medium", "few")


def test_confusion_rows_are_true_classes():
    predictions, labels = torch.tensor([1, 1, 0, 2]), torch.tensor([0, 0, 0, 2])
    assert confusion_counts(predictions, labels, 4).tolist() == [[1, 2, 0, 0], [0] * 4, [0, 0, 1, 0], [0] * 4]


def test_calibration_by_hand():
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


def test_a_perfect_and_sure_model():
    labels = torch.arange(12) % 6
    logits = 1e4 * torch.nn.functional.one_hot(labels, 6).float()[:, None].expand(-1, 3, -1)
    result = evaluate_logits(logits, labels, [500, 200, 50, 30, 10, 5])
    assert (result.accuracy, result.balanced, result.many, result.medium, result.few, result.top5) == (1,) * 6
    assert (result.nll, result.ece, result.disagreement) == (0, 0, 0)
    assert result.frequent_confusions() == []


def test_large_logits_keep_their_precision():
    logits, labels = torch.tensor([[[3e4, 3e4 + 1, 0.0]]]), torch.tensor([0])
    result = evaluate_logits(logits, labels, [1, 1, 1])
    assert result.nll == pytest.approx(math.log1p(math.e), rel=1e-9)
    far = evaluate_logits(torch.tensor([[[-1e5, 1e5, 0.0]]]), labels, [1, 1, 1])
    assert far.nll == pytest.approx(2e5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_leave_accuracy_but_no_likelihood(bad):
    logits, labels = example(40, 2, 6)
    good = evaluate_logits(logits[1:], labels[1:], [50] * 6)
    logits[0, 0, 3] = bad
    result = evaluate_logits(logits, labels, [50] * 6)
    assert (result.nll, result.ece, result.calibration) == (None, None, None)
    assert result.confusion.sum() == 40
    right = good.accuracy * 39 + (labels[0] == 3)  # the class of the odd logit is predicted
    assert result.accuracy * 40 == pytest.approx(float(right))
    json.dumps(result.as_dict(), allow_nan=False)


def test_a_class_ruled_out_does_not_spoil_calibration():
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
    assert {field.name for field in dataclasses.fields(result)} - {"confusion"} == set(plain) - {"confusions"}
    assert len(plain["experts"]) == num_experts
    assert sum(plain["calibration"]["counts"]) == num_images


def test_frequent_confusions_come_first_and_are_mistakes():
    logits, labels = example(800, 1, 8)
    result = evaluate_logits(logits, labels, [50] * 8)
    listed = result.frequent_confusions(20)
    mistakes = result.confusion.copy()
    np.fill_diagonal(mistakes, 0)
    assert len(listed) == 20
    assert [wrong["count"] for wrong in listed] == sorted(mistakes.ravel().tolist(), reverse=True)[:20]
    assert all(result.confusion[w["true"], w["predicted"]] == w["count"] for w in listed)
    assert all(w["true"] != w["predicted"] for w in listed)


def test_input_is_left_as_it_was():
    logits, labels = example(30, 3, 7)
    before = logits.clone(), labels.clone()
    evaluate_logits(logits, labels, [50] * 7)
    assert torch.equal(logits, before[0])
    assert torch.equal(labels, before[1])


@pytest.mark.parametrize(
    ("labels", "counts", "message"),
    [
        ([], [1, 1, 1], "0 images"),
        ([0, 1, 2], [1, 1, 1], "must be one for each"),
        ([0, 1], [1, 1], "2 classes and the logits 3"),
        ([0, 3], [1, 1, 1], "from 0 to 2"),
        ([-1, 0], [1, 1, 1], "from 0 to 2"),
    ],
)
def test_what_does_not_fit_is_refused(labels, counts, message):
    logits = torch.zeros(2 if labels else 0, 1, 3)
    with pytest.raises(ValueError, match=message):
        evaluate_logits(logits, torch.tensor(labels, dtype=torch.int64), counts)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the golden values of the original code are not here")
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_shot_groups_of_the_original_code(convention):
    many_above, few_below = CONVENTIONS[convention]
    with np.load(GOLDEN / "data/shot_splits.npz") as golden:
        sets = [name.removeprefix("counts_") for name in golden.files if name.startswith("counts_")]
        assert sets
        for name in sets:
            counts = golden[f"counts_{name}"].tolist()
            masks = shot_groups(counts, ShotThresholds(many_above, few_below))
            for shot in SHOTS:
                assert np.array_equal(masks[shot], golden[f"{name}/{convention}/{shot}_shot"]), (name, shot)
            logits, labels = torch.zeros(1, 1, len(counts)), torch.tensor([0])
            shots = evaluate_logits(logits, labels, counts, many_above=many_above, few_below=few_below).shots
            assert all(masks[shot][k] for k, shot in enumerate(shots)), name
