"""Averages over experts, against slow versions: the arithmetic, and models, losses and metrics that use it."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from helpers.ensembles import random_logits, slow_ensemble, slow_softmax
from helpers.routing import route_outputs

from longtail.evaluation.label_shift.evaluators import evaluate_label_shift
from longtail.evaluation.label_shift.learned_prior import LearnedPrior
from longtail.evaluation.label_shift.subsets import label_shift
from longtail.evaluation.metrics import evaluate_logits
from longtail.evaluation.outputs import ModelOutputs
from longtail.losses import router_targets
from longtail.models.multi_expert import create_model
from longtail.models.router import experts_used
from longtail.utils.choices import Average
from longtail.utils.ensembles import ensemble, partial_ensembles, weighted_ensemble
from longtail.utils.errors import InputError

COUNTS = [120, 60, 10, 5]


@pytest.mark.parametrize("average", get_args(Average))
def test_ensembles(average):
    logits, _ = random_logits()
    mean, partial = ensemble(logits, average), partial_ensembles(logits, average)
    equal_weights = weighted_ensemble(logits, torch.full((3,), 1 / 3), average)
    for image, experts in enumerate(logits.numpy()):
        for number in (1, 2, 3):
            expected = slow_ensemble(experts[:number], average)
            assert partial[image, number - 1].softmax(0).numpy() == pytest.approx(expected, abs=1e-6)
        for result in (mean, equal_weights):
            assert result[image].softmax(0).numpy() == pytest.approx(expected, abs=1e-6)
    if average == "probabilities":
        torch.testing.assert_close(mean.exp().sum(dim=1), torch.ones(len(mean)))


def test_averages_differ_and_logits_are_the_default():
    logits, _ = random_logits()
    by_logits, by_probabilities = (ensemble(logits, average).argmax(1) for average in get_args(Average))
    assert (by_logits != by_probabilities).any()
    assert torch.equal(ensemble(logits), logits.mean(dim=1))
    assert torch.equal(partial_ensembles(logits), partial_ensembles(logits, "logits"))


def test_probabilities_too_small_for_a_float_keep_their_order():
    logits = torch.tensor([[[0.0, -300, -400], [0.0, -310, -390]]])
    result = ensemble(logits, "probabilities")
    assert result.argsort(dim=1, descending=True).tolist() == [[0, 1, 2]]
    assert result[0].tolist() == pytest.approx([0, -300 - math.log(2), -390 - math.log(2)], abs=1e-3)


@pytest.mark.parametrize("average", get_args(Average))
def test_metrics_and_router_targets(average):
    logits, labels = random_logits()
    metrics = evaluate_logits(logits, labels, COUNTS, average=average)
    rows = np.array([slow_ensemble(experts, average) for experts in logits.numpy()])
    correct = rows.argmax(1) == labels.numpy()
    assert metrics.accuracy == pytest.approx(correct.mean())
    assert metrics.nll == pytest.approx(np.mean([-math.log(row[k]) for row, k in zip(rows, labels, strict=True)]))
    confidence, gap = rows.max(1), 0.0
    for number in range(15):
        in_bin = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        gap += abs(correct[in_bin].sum() - confidence[in_bin].sum())
    assert metrics.ece == pytest.approx(gap / len(rows), abs=1e-6)
    for image, target in enumerate(router_targets(logits, labels, average).tolist()):
        hits = [slow_ensemble(logits[image, :k].numpy(), average).argmax() == labels[image] for k in (1, 2, 3)]
        assert target == [not hits[0] and (hits[1] or hits[2]), not hits[1] and hits[2]]


@pytest.mark.parametrize("average", get_args(Average))
def test_label_shift(average):
    logits, labels = random_logits(200)
    prior = np.array(COUNTS) / sum(COUNTS)
    learned, views = LearnedPrior(torch.from_numpy(prior).log().float()[None], ""), (logits, logits.flip(0))
    outputs = ModelOutputs(logits, labels, average=average)
    report = evaluate_label_shift(outputs, COUNTS, learned, views, (10,))
    for row in report.rows:
        kind, _, ratio = row.distribution.partition("-")
        subset = label_shift(labels.numpy(), COUNTS, float(ratio or 1), "backward" if kind == "backward" else "forward")
        correct = np.zeros(3)
        for position in subset.positions:
            experts, weights = logits[position].double().numpy(), np.array(row.weights)
            adjusted = experts - np.log(prior) + np.log(subset.prior)
            weighted = weights @ (experts if average == "logits" else [slow_softmax(expert) for expert in experts])
            results = slow_ensemble(experts, average), slow_ensemble(adjusted, average), weighted
            correct += [result.argmax() == labels[position] for result in results]
        assert [row.mean, row.known_prior, row.aggregated] == pytest.approx((correct / row.num_images).tolist())


@pytest.mark.parametrize("average", get_args(Average))
@torch.no_grad()
def test_models_predict_and_route_by_their_average(average):
    torch.manual_seed(0)
    model = create_model("resnet20", 4, 3, router={}, average=average).eval()
    for number, head in enumerate(model.heads):
        head.scale = (200.0, 5.0, 40.0)[number]
    images = torch.randn(12, 3, 8, 8)
    output = model(images)
    steps = model.router(output.logits, output.features)
    thresholds = steps.sigmoid().median(dim=0).values.tolist()
    routed = model.route(images, thresholds)
    assert torch.equal(routed.experts_used, experts_used(steps, thresholds))  # does not depend on the average
    assert len(set(routed.experts_used.tolist())) > 1
    torch.testing.assert_close(routed.logits, route_outputs(output.logits, steps, thresholds, average).logits)
    predicted = model.predict_logits(images)
    for image, used in enumerate(routed.experts_used.tolist()):
        experts = output.logits[image].numpy()
        expected = slow_ensemble(experts[:used], average)
        assert routed.logits[image].softmax(0).numpy() == pytest.approx(expected, abs=1e-5)
        assert predicted[image].softmax(0).numpy() == pytest.approx(slow_ensemble(experts, average), abs=1e-5)


def test_unknown_average():
    with pytest.raises(InputError, match=r"'logit'.*logits, probabilities.*did you mean 'logits'"):
        create_model("resnet20", 4, average="logit")
