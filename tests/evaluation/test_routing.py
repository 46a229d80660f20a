"""Cost and accuracy of routing, compared with loops over images and thresholds."""

import json
import math
import time
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from helpers.routing import route_outputs
from helpers.scores import are_close, average, slow_scores

from longtail.data.imbalance import ShotThresholds, shot_groups
from longtail.evaluation.flops import Cost
from longtail.evaluation.outputs import ModelOutputs
from longtail.evaluation.routing import (
    ALL_EXPERTS,
    FIRST_EXPERT,
    Budget,
    CurvePoint,
    OperatingPoint,
    choose_threshold,
    curve,
    evaluate_routing,
    oracle_curve,
    parse_budget,
    prefix_predictions,
    random_curve,
)
from longtail.models.router import experts_used
from longtail.utils.ensembles import partial_ensembles
from longtail.utils.errors import InputError

COUNTS = [500, 200, 101, 100, 50, 20, 19, 5]
SEEDS = range(12)


def example(seed, num_images=120, decimals=None):
    """Outputs of 2 to 4 experts, and their cost; some classes are rare or missing among the labels."""
    generator = torch.Generator().manual_seed(seed)
    num_experts = 2 + seed % 3
    labels = torch.rand(len(COUNTS), generator=generator).multinomial(num_images, True, generator=generator)
    logits = torch.randn(num_images, num_experts, len(COUNTS), generator=generator)
    logits[torch.arange(num_images), :, labels] += 1.5
    router_logits = 2 * torch.randn(num_images, num_experts - 1, generator=generator)
    if decimals is not None:
        router_logits = router_logits.round(decimals=decimals)
    branches = torch.randint(1, 25_000, (num_experts,), generator=generator).tolist()
    cost = Cost(50_000, tuple(branches), (10,) * num_experts, (500,) * (num_experts - 1))
    return ModelOutputs(logits, labels, router_logits), cost


def correct_prefixes(outputs):
    return prefix_predictions(outputs.logits) == outputs.labels[:, None]


def example_curve(outputs, cost, **options):
    return curve(correct_prefixes(outputs), outputs.router_logits, outputs.labels, cost.routed_costs, **options)


def balanced(correct, labels):
    return average(correct[labels == k].double().mean().item() for k in labels.unique())


def have_same_scores(ours, slow):
    return are_close({name: getattr(ours, name) for name in slow}, slow)


def at(points, cost):
    """Height of a piecewise linear curve."""
    return np.interp(cost, [point[0] for point in points], [point[1] for point in points])


@pytest.mark.parametrize("seed", SEEDS)
def test_routing_equals_a_loop_over_images(seed):
    outputs, cost = example(seed)
    num_experts, labels = outputs.logits.shape[1], outputs.labels.tolist()
    threshold = [0.5, 0.1, 0.9, ALL_EXPERTS, FIRST_EXPERT][seed % 5]
    thresholds = ShotThresholds(99, 21) if seed % 2 else ShotThresholds()
    report = evaluate_routing(outputs, COUNTS, cost, threshold, thresholds=thresholds)

    used, predictions = [], []
    for image, steps in zip(outputs.logits, outputs.router_logits, strict=True):
        number = 1
        while number < num_experts and 1 / (1 + math.exp(-steps[number - 1])) > threshold:
            number += 1
        used.append(number)
        predictions.append(int(image[:number].mean(dim=0).argmax()))
    assert have_same_scores(report, slow_scores(predictions, labels, COUNTS, thresholds))
    assert report.shares == pytest.approx([used.count(k + 1) / len(used) for k in range(num_experts)])
    assert report.mean_experts == pytest.approx(average(used))
    assert report.cost == pytest.approx(average(cost.routed(number) for number in used))
    assert report.relative_cost == pytest.approx(report.cost / cost.routed(1))
    for shot, mask in shot_groups(COUNTS, thresholds).items():
        of_group = [number for number, label in zip(used, labels, strict=True) if mask[label]]
        assert report.mean_experts_by_shot[shot] == pytest.approx(average(of_group))
        of_shot = [of_group.count(k + 1) / len(of_group) for k in range(num_experts)] if of_group else None
        assert report.shares_by_shot[shot] == pytest.approx(of_shot)
    for number, prefix in enumerate(report.prefixes, start=1):
        predictions = outputs.logits[:, :number].mean(dim=1).argmax(dim=1).tolist()
        assert have_same_scores(prefix, slow_scores(predictions, labels, COUNTS, thresholds))
        assert prefix.cost == cost.prefix(number)
        assert prefix.relative_cost == pytest.approx(prefix.cost / cost.routed(1))


def test_report_has_the_curves():
    outputs, cost = example(1)
    report = evaluate_routing(outputs, COUNTS, cost, 0.5)
    assert report.curve == example_curve(outputs, cost)
    assert report.random_curve == random_curve([prefix.balanced for prefix in report.prefixes], cost.prefix_costs)
    assert report.oracle_curve == oracle_curve(correct_prefixes(outputs), outputs.labels, cost.prefix_costs)


def test_a_group_without_images_is_none_and_the_report_is_json_ready():
    outputs, cost = example(0)
    many = outputs.labels < 3
    outputs = ModelOutputs(outputs.logits[many], outputs.labels[many], outputs.router_logits[many])
    report = evaluate_routing(outputs, COUNTS, cost, 0.5)
    assert report.mean_experts_by_shot["many"] == pytest.approx(report.mean_experts)
    assert report.mean_experts_by_shot["medium"] is report.mean_experts_by_shot["few"] is report.few is None
    assert report.shares_by_shot == {"many": pytest.approx(report.shares), "medium": None, "few": None}
    plain = report.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False))["curve"] == plain["curve"]
    assert set(plain) == set(vars(report))


def test_predictions_of_more_images_than_a_block():
    logits = torch.randn(2500, 3, 4)
    assert torch.equal(prefix_predictions(logits), partial_ensembles(logits).argmax(dim=2))


@pytest.mark.parametrize("decimals", [None, 1])  # 1: many images share a probability
@pytest.mark.parametrize("points", [1000, 20])
@pytest.mark.parametrize("seed", SEEDS)
def test_points_of_a_curve_equal_routing(seed, points, decimals):
    outputs, cost = example(seed, decimals=decimals)
    costs, prefixes = cost.routed_costs, correct_prefixes(outputs)
    found = example_curve(outputs, cost, points=points)
    assert len(found) <= points
    for point in found:
        routed = route_outputs(outputs.logits, outputs.router_logits, point.threshold)
        correct = routed.logits.argmax(dim=1) == outputs.labels
        mean = average(costs[number - 1] for number in routed.experts_used.tolist())
        expected = mean, correct.double().mean().item(), balanced(correct, outputs.labels)
        assert point[1:] == pytest.approx(expected, rel=1e-12)
    assert [p.cost for p in found] == sorted({p.cost for p in found})
    first, last = found[0], found[-1]
    assert (first.threshold, last.threshold) == (FIRST_EXPERT, ALL_EXPERTS)
    assert (first.cost, last.cost) == (pytest.approx(costs[0]), pytest.approx(costs[-1]))
    assert first.accuracy == pytest.approx(prefixes[:, 0].double().mean().item())
    assert last.accuracy == pytest.approx(prefixes[:, -1].double().mean().item())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_curve_contains_every_routing_once(seed):
    outputs, cost = example(seed, num_images=40)
    router_logits = outputs.router_logits
    # Slightly above each probability: the last digit of a sigmoid depends on the memory layout.
    candidates = [ALL_EXPERTS, FIRST_EXPERT, *(router_logits.sigmoid() + 1e-6).flatten().tolist()]
    routings = {tuple(experts_used(router_logits, threshold).tolist()) for threshold in candidates}
    found = example_curve(outputs, cost, points=1000)
    assert {tuple(experts_used(router_logits, point.threshold).tolist()) for point in found} == routings
    assert len(found) == len(routings)


def test_a_short_curve_has_equal_steps():
    router_logits = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    correct, labels = torch.ones(20_000, 3, dtype=torch.bool), torch.zeros(20_000, dtype=torch.int64)
    found = curve(correct, router_logits, labels, [1, 2, 3], points=100)
    steps = [second.cost - first.cost for first, second in pairwise(found)]
    assert len(found) == 100
    assert max(steps) <= 1.01 * 2 / 99


@pytest.mark.parametrize("value", [0.0, 200.0, -200.0, math.nan])
def test_a_router_with_the_same_output_for_all_images(value):
    outputs, cost = example(1)
    outputs = outputs._replace(router_logits=torch.full_like(outputs.router_logits, value))
    for point in example_curve(outputs, cost):
        used = experts_used(outputs.router_logits, point.threshold)
        assert point.cost == pytest.approx(average(cost.routed(number) for number in used.tolist()))


def test_a_curve_of_many_images_takes_less_than_a_second():
    generator = torch.Generator().manual_seed(0)
    correct = torch.rand(50_000, 4, generator=generator) < 0.5
    labels = torch.randint(1000, (50_000,), generator=generator)
    router_logits = torch.randn(50_000, 3, generator=generator)
    start = time.process_time()
    assert len(curve(correct, router_logits, labels, [1, 2, 3, 4])) == 200
    assert time.process_time() - start < 1


def test_random_curve_is_the_upper_hull():
    assert random_curve([0.5, 0.6], [1, 2]) == [(1, 0.5), (2, 0.6)]
    assert random_curve([0.5, 0.55, 0.7], [1, 2, 3]) == [(1, 0.5), (3, 0.7)]
    assert random_curve([0.5, 0.65, 0.7], [1, 2, 3]) == [(1, 0.5), (2, 0.65), (3, 0.7)]
    assert random_curve([0.5, 0.7, 0.6], [1, 2, 3]) == [(1, 0.5), (2, 0.7), (3, 0.6)]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_curve_is_the_best_mixture_of_two(seed):
    generator = np.random.default_rng(seed)
    accuracies, costs = generator.random(5), np.sort(generator.random(5))
    hull = random_curve(accuracies.tolist(), costs.tolist())
    for cost in np.linspace(costs[0], costs[-1], 50):
        best = max(
            accuracies[i] + (accuracies[j] - accuracies[i]) * (cost - costs[i]) / (costs[j] - costs[i])
            for i, j in product(range(5), repeat=2)
            if i < j and costs[i] <= cost <= costs[j]
        )
        assert at(hull, cost) == pytest.approx(best)


@pytest.mark.parametrize("seed", SEEDS)
def test_oracle_curve_is_the_best_of_all_routings(seed):
    generator = torch.Generator().manual_seed(seed)
    num_images, num_experts = (6, 3) if seed % 2 else (4, 4)
    prefixes = torch.rand(num_images, num_experts, generator=generator) < 0.4
    labels = torch.randint(1, 4, (num_images,), generator=generator)
    costs = (1 + torch.rand(num_experts, generator=generator).cumsum(0)).tolist()
    oracle = oracle_curve(prefixes, labels, costs)
    routings = []
    for used in product(range(num_experts), repeat=num_images):
        correct = prefixes[torch.arange(num_images), torch.tensor(used)]
        routings.append((average(costs[k] for k in used), balanced(correct, labels)))
    assert all(at(oracle, cost) >= accuracy - 1e-12 for cost, accuracy in routings)
    assert all(any(point == pytest.approx(routing) for routing in routings) for point in oracle[:-1])
    assert oracle[-1] == pytest.approx((costs[-1], max(accuracy for _, accuracy in routings)))
    slopes = [(b.accuracy - a.accuracy) / (b.cost - a.cost) for a, b in pairwise(oracle) if b.cost > a.cost]
    assert slopes == sorted(slopes, reverse=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_oracle_is_above_router_and_random_routing(seed):
    outputs, cost = example(seed)
    report = evaluate_routing(outputs, COUNTS, cost, 0.5)
    oracle, costs = report.oracle_curve, cost.prefix_costs
    assert all(point.balanced <= at(oracle, point.cost) + 1e-12 for point in report.curve)
    assert all(cost.routed(1) - 1e-9 <= point.cost <= cost.routed_costs[-1] + 1e-9 for point in report.curve)
    grid = np.linspace(costs[0], costs[-1], 100)
    assert (at(report.random_curve, grid) <= at(oracle, grid) + 1e-12).all()
    assert all(prefix.balanced <= at(report.random_curve, prefix.cost) + 1e-12 for prefix in report.prefixes)
    best = balanced(correct_prefixes(outputs).any(dim=1), outputs.labels)
    assert at(oracle, costs[-1]) == pytest.approx(best)


@pytest.mark.parametrize("seed", SEEDS)
def test_chosen_thresholds_meet_their_goals(seed):
    outputs, cost = example(seed)
    found = example_curve(outputs, cost)

    def measured(threshold):
        return evaluate_routing(outputs, COUNTS, cost, threshold)

    all_experts = measured(ALL_EXPERTS).balanced
    for times in (1, 1.1, 1.25, 1.4, 9):
        result = measured(choose_threshold(found, compute_budget=Budget(times)))
        limit = times * cost.routed(1) * (1 - 1e-9)
        assert result.relative_cost <= times + 1e-9
        assert all(point.balanced <= result.balanced + 1e-9 for point in found if point.cost <= limit)
        in_macs = choose_threshold(found, compute_budget=Budget(times * found[0].cost, "MACs"))
        assert in_macs == result.threshold
    for drop in (0, 0.5, 2, 100):
        result = measured(choose_threshold(found, max_accuracy_drop=drop))
        assert result.balanced >= all_experts - drop / 100 - 1e-9
        cheaper = [point for point in found if point.cost < result.cost * (1 - 1e-9)]
        assert all(point.balanced < all_experts - drop / 100 for point in cheaper)
    assert measured(choose_threshold(found, max_accuracy_drop=100)).mean_experts == 1


POINTS = [
    OperatingPoint(1, 100, 0.5, 0.4),
    OperatingPoint(0.7, 120, 0.6, 0.5),
    OperatingPoint(0.6, 150, 0.6, 0.5),
    OperatingPoint(-1, 200, 0.7, 0.45),
]


def test_of_equally_accurate_points_the_cheapest_is_chosen():
    assert choose_threshold(POINTS, compute_budget=Budget(1.5)) == 0.7
    assert choose_threshold(POINTS, compute_budget=Budget(9)) == 0.7
    assert choose_threshold(POINTS, compute_budget=Budget(119, "MACs")) == 1
    assert choose_threshold(POINTS, max_accuracy_drop=0) == 0.7
    assert choose_threshold(POINTS, max_accuracy_drop=5) == 1
    assert choose_threshold(POINTS, max_accuracy_drop=-5) == 0.7  # five points better than all experts


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        ({}, "budget or .* drop"),
        ({"compute_budget": Budget(2), "max_accuracy_drop": 1}, "budget or .* drop"),
        ({"compute_budget": Budget(0.9)}, r"90\.0 MACs .* 100 \(1 times .*200 \(2\.00 times\)"),
        ({"compute_budget": Budget(99, "MACs")}, r"99\.0 MACs"),
        ({"max_accuracy_drop": -6}, r"-6 .* -5\.00 to 5\.00"),
    ],
)
def test_goals_that_no_threshold_meets(goal, message):
    with pytest.raises(InputError, match=message):
        choose_threshold(POINTS, **goal)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        *[("1.2", Budget(1.2)), ("2", Budget(2)), (" 1. ", Budget(1)), (".5", Budget(0.5)), ("999", Budget(999))],
        *[("70M", Budget(70e6, "MACs")), ("4.1G", Budget(4.1e9, "MACs")), ("4.1 G", Budget(4.1e9, "MACs"))],
        *[("1000", Budget(1000, "MACs")), ("7e7", Budget(7e7, "MACs")), ("0.5k", Budget(500, "MACs"))],
    ],
)
def test_budgets_are_parsed(text, budget):
    assert parse_budget(text) == (pytest.approx(budget.amount), budget.unit)


@pytest.mark.parametrize("text", ["", "M", "0", "0M", "-1", "nan", "inf", "1e999", "1,2", "70m", "70MB", "1.2x", "1 2"])
def test_invalid_budgets(text):
    with pytest.raises(InputError, match=rf"'{text}'.*1\.2.*70M"):
        parse_budget(text)


def test_curve_points_are_json_ready():
    outputs, cost = example(3)
    points = oracle_curve(correct_prefixes(outputs), outputs.labels, cost.prefix_costs)
    assert isinstance(points[0], CurvePoint)
    for found in (example_curve(outputs, cost), points):
        assert json.loads(json.dumps(found)) == [list(point) for point in found]
