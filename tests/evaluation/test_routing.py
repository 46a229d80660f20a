"""What a routing costs and reaches, against loops over images and thresholds."""

import json
import math
import time
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from helpers.routing import route_outputs
from helpers.scores import average, same, slow_scores

from longtail.data.imbalance import ShotThresholds, shot_groups
from longtail.evaluation.routing import (
    ALL_EXPERTS,
    FIRST_EXPERT,
    Budget,
    CurvePoint,
    OperatingPoint,
    choose_threshold,
    curve,
    macs,
    oracle_curve,
    parse_budget,
    prefix_predictions,
    random_curve,
    routing,
)
from longtail.models.router import experts_used
from longtail.utils.ensembles import partial_ensembles
from longtail.utils.errors import InputError

COUNTS = [500, 200, 101, 100, 50, 20, 19, 5]
SEEDS = range(12)


def outputs(seed, num_images=120, num_experts=None, decimals=None):
    """Logits, router logits, labels and both kinds of costs; some classes are rare or missing among the labels."""
    generator = torch.Generator().manual_seed(seed)
    num_experts = num_experts or 2 + seed % 3
    labels = torch.rand(len(COUNTS), generator=generator).multinomial(num_images, True, generator=generator)
    logits = torch.randn(num_images, num_experts, len(COUNTS), generator=generator)
    logits[torch.arange(num_images), :, labels] += 1.5
    router_logits = 2 * torch.randn(num_images, num_experts - 1, generator=generator)
    if decimals is not None:
        router_logits = router_logits.round(decimals=decimals)
    prefix_costs = (50 + 25 * torch.rand(num_experts, generator=generator).cumsum(0)).tolist()
    costs = [cost + min(k + 1, num_experts - 1) * 0.5 for k, cost in enumerate(prefix_costs)]
    return logits, router_logits, labels, costs, prefix_costs


def hits(logits, labels):
    return prefix_predictions(logits) == labels[:, None]


def balanced(right, labels):
    return average(right[labels == k].double().mean().item() for k in labels.unique())


def same_scores(ours, slow):
    return same({name: getattr(ours, name) for name in slow}, slow)


def at(corners, cost):
    """Height of a curve of straight pieces."""
    return np.interp(cost, [corner[0] for corner in corners], [corner[1] for corner in corners])


@pytest.mark.parametrize("seed", SEEDS)
def test_routing_agrees_with_a_loop_over_images(seed):
    logits, router_logits, labels, costs, prefix_costs = outputs(seed)
    threshold = [0.5, 0.1, 0.9, ALL_EXPERTS, FIRST_EXPERT][seed % 5]
    limits = {"many_above": 99, "few_below": 21} if seed % 2 else {"many_above": 100, "few_below": 20}
    result = routing(logits, router_logits, labels, COUNTS, costs, prefix_costs, threshold, **limits)

    num_experts = logits.shape[1]
    used, answers = [], []
    for image, steps in zip(logits, router_logits, strict=True):
        number = 1
        while number < num_experts and 1 / (1 + math.exp(-steps[number - 1])) > threshold:
            number += 1
        used.append(number)
        answers.append(int(image[:number].mean(dim=0).argmax()))
    assert same_scores(result, slow_scores(answers, labels.tolist(), COUNTS, *limits.values()))
    assert result.shares == pytest.approx([used.count(k + 1) / len(used) for k in range(num_experts)])
    assert result.mean_experts == pytest.approx(average(used))
    assert result.cost == pytest.approx(average(costs[number - 1] for number in used))
    assert result.relative_cost == pytest.approx(result.cost / costs[0])
    for shot, mask in shot_groups(COUNTS, ShotThresholds(**limits)).items():
        of_group = [number for number, label in zip(used, labels.tolist(), strict=True) if mask[label]]
        assert result.mean_experts_by_shot[shot] == pytest.approx(average(of_group))
    for number, prefix in enumerate(result.prefixes, start=1):
        own = logits[:, :number].mean(dim=1).argmax(dim=1).tolist()
        assert same_scores(prefix, slow_scores(own, labels.tolist(), COUNTS, *limits.values()))
        assert prefix.cost == prefix_costs[number - 1]
        assert prefix.relative_cost == pytest.approx(prefix.cost / costs[0])


def test_a_group_without_images_is_none_and_all_is_ready_for_json():
    logits, router_logits, labels, costs, prefix_costs = outputs(0)
    few = labels < 3
    result = routing(logits[few], router_logits[few], labels[few], COUNTS, costs, prefix_costs, 0.5)
    assert result.mean_experts_by_shot["many"] == pytest.approx(result.mean_experts)
    assert result.mean_experts_by_shot["medium"] is result.mean_experts_by_shot["few"] is result.few is None
    plain = result.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert set(plain) == set(vars(result))


def test_predictions_of_more_images_than_a_block():
    logits = torch.randn(2500, 3, 4)
    assert torch.equal(prefix_predictions(logits), partial_ensembles(logits).argmax(dim=2))


@pytest.mark.parametrize("decimals", [None, 1])  # 1: many images share a probability
@pytest.mark.parametrize("points", [1000, 20])
@pytest.mark.parametrize("seed", SEEDS)
def test_every_point_is_what_route_outputs_yields(seed, points, decimals):
    logits, router_logits, labels, costs, _ = outputs(seed, decimals=decimals)
    right = hits(logits, labels)
    found = curve(right, router_logits, labels, costs, points=points)
    assert len(found) <= points
    for point in found:
        routed = route_outputs(logits, router_logits, point.threshold)
        correct = routed.logits.argmax(dim=1) == labels
        cost = average(costs[number - 1] for number in routed.experts_used.tolist())
        expected = cost, correct.double().mean().item(), balanced(correct, labels)
        assert point[1:] == pytest.approx(expected, rel=1e-12)
    assert [p.cost for p in found] == sorted({p.cost for p in found})
    first, last = found[0], found[-1]
    assert (first.threshold, last.threshold) == (FIRST_EXPERT, ALL_EXPERTS)
    assert (first.cost, last.cost) == (pytest.approx(costs[0]), pytest.approx(costs[-1]))
    assert first.accuracy == pytest.approx(right[:, 0].double().mean().item())
    assert last.accuracy == pytest.approx(right[:, -1].double().mean().item())


@pytest.mark.parametrize("seed", SEEDS)
def test_a_curve_leaves_no_behaviour_out(seed):
    logits, router_logits, labels, costs, _ = outputs(seed, num_images=40)
    # Just above each probability: a sigmoid's last digit may depend on how the tensor lies in memory.
    tried = [ALL_EXPERTS, FIRST_EXPERT, *(router_logits.sigmoid() + 1e-6).flatten().tolist()]
    behaviours = {tuple(experts_used(router_logits, threshold).tolist()) for threshold in tried}
    found = curve(hits(logits, labels), router_logits, labels, costs, points=1000)
    assert {tuple(experts_used(router_logits, point.threshold).tolist()) for point in found} == behaviours
    assert len(found) == len(behaviours)


def test_a_thinned_curve_moves_about_as_many_images_from_point_to_point():
    router_logits = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0))
    right, labels = torch.ones(20_000, 3, dtype=torch.bool), torch.zeros(20_000, dtype=torch.int64)
    found = curve(right, router_logits, labels, [1, 2, 3], points=100)
    steps = [second.cost - first.cost for first, second in pairwise(found)]
    assert len(found) == 100
    assert max(steps) <= 1.01 * 2 / 99


@pytest.mark.parametrize("value", [0.0, 200.0, -200.0, math.nan])
def test_a_router_that_says_the_same_of_all_images(value):
    logits, router_logits, labels, costs, _ = outputs(1)
    router_logits = torch.full_like(router_logits, value)
    for point in curve(hits(logits, labels), router_logits, labels, costs):
        used = experts_used(router_logits, point.threshold)
        assert point.cost == pytest.approx(average(costs[number - 1] for number in used.tolist()))


def test_a_curve_of_many_images_takes_less_than_a_second():
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(50_000, 4, generator=generator) < 0.5
    labels = torch.randint(1000, (50_000,), generator=generator)
    router_logits = torch.randn(50_000, 3, generator=generator)
    start = time.process_time()
    assert len(curve(right, router_logits, labels, [1, 2, 3, 4])) == 200
    assert time.process_time() - start < 1


def test_random_routing_mixes_two_of_the_hull():
    assert random_curve([0.5, 0.6], [1, 2]) == [(1, 0.5), (2, 0.6)]
    assert random_curve([0.5, 0.55, 0.7], [1, 2, 3]) == [(1, 0.5), (3, 0.7)]  # 2 experts: less than half of each
    assert random_curve([0.5, 0.65, 0.7], [1, 2, 3]) == [(1, 0.5), (2, 0.65), (3, 0.7)]
    assert random_curve([0.5, 0.7, 0.6], [1, 2, 3]) == [(1, 0.5), (2, 0.7), (3, 0.6)]


@pytest.mark.parametrize("seed", SEEDS)
def test_random_routing_is_the_best_mixture(seed):
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


@pytest.mark.parametrize("by_class", [True, False])
@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_surpasses_the_oracle_and_its_corners_are_reached(seed, by_class):
    generator = torch.Generator().manual_seed(seed)
    num_images, num_experts = (6, 3) if seed % 2 else (4, 4)
    right = torch.rand(num_images, num_experts, generator=generator) < 0.4
    labels = torch.randint(1, 4, (num_images,), generator=generator)
    costs = (1 + torch.rand(num_experts, generator=generator).cumsum(0)).tolist()
    oracle = oracle_curve(right, labels, costs, balanced=by_class)
    routings = []
    for used in product(range(num_experts), repeat=num_images):
        correct = right[torch.arange(num_images), torch.tensor(used)]
        accuracy = balanced(correct, labels) if by_class else correct.double().mean().item()
        routings.append((average(costs[k] for k in used), accuracy))
    assert all(at(oracle, cost) >= accuracy - 1e-12 for cost, accuracy in routings)
    assert all(any(corner == pytest.approx(reached) for reached in routings) for corner in oracle[:-1])
    assert oracle[-1] == (costs[-1], max(accuracy for _, accuracy in oracle))
    slopes = [(b.accuracy - a.accuracy) / (b.cost - a.cost) for a, b in pairwise(oracle) if b.cost > a.cost]
    assert slopes == sorted(slopes, reverse=True)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_curve_lies_where_it_belongs(seed):
    logits, router_logits, labels, costs, prefix_costs = outputs(seed)
    right = hits(logits, labels)
    found = curve(right, router_logits, labels, costs)
    oracle = oracle_curve(right, labels, prefix_costs)
    by_prefix = [balanced(own, labels) for own in right.T]
    chance = random_curve(by_prefix, prefix_costs)
    assert all(point.balanced <= at(oracle, point.cost) + 1e-12 for point in found)
    assert all(costs[0] - 1e-9 <= point.cost <= costs[-1] + 1e-9 for point in found)
    grid = np.linspace(prefix_costs[0], prefix_costs[-1], 100)
    assert (at(chance, grid) <= at(oracle, grid) + 1e-12).all()
    assert all(accuracy <= at(chance, cost) + 1e-12 for accuracy, cost in zip(by_prefix, prefix_costs, strict=True))
    assert at(oracle, costs[-1]) == pytest.approx(balanced(right.any(dim=1), labels))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_chosen_threshold_does_what_was_asked(seed):
    logits, router_logits, labels, costs, prefix_costs = outputs(seed)
    found = curve(hits(logits, labels), router_logits, labels, costs)

    def measured(threshold):
        return routing(logits, router_logits, labels, COUNTS, costs, prefix_costs, threshold)

    everything = measured(ALL_EXPERTS).balanced
    for times in (1, 1.1, 1.25, 1.4, 9):
        result = measured(choose_threshold(found, compute_budget=Budget(times)))
        assert result.relative_cost <= times + 1e-9
        assert all(p.balanced <= result.balanced + 1e-9 for p in found if p.cost <= times * costs[0] * (1 - 1e-9))
        in_macs = choose_threshold(found, compute_budget=Budget(times * found[0].cost, "MACs"))
        assert in_macs == result.threshold
    for drop in (0, 0.5, 2, 100):
        result = measured(choose_threshold(found, max_accuracy_drop=drop))
        assert result.balanced >= everything - drop / 100 - 1e-9
        cheaper = [p for p in found if p.cost < result.cost * (1 - 1e-9)]
        assert all(p.balanced < everything - drop / 100 for p in cheaper)
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
    ("wish", "message"),
    [
        ({}, "give one of them"),
        ({"compute_budget": Budget(2), "max_accuracy_drop": 1}, "give one of them"),
        ({"compute_budget": Budget(0.9)}, r"budget of 90.0 MACs .* from 100 \(1 times .*\) to 200 \(2.00 times\)"),
        ({"compute_budget": Budget(99, "MACs")}, "budget of 99.0 MACs"),
        ({"max_accuracy_drop": -6}, "drop of accuracy of -6 .* -5.00 to 5.00"),
    ],
)
def test_wishes_that_nothing_satisfies(wish, message):
    with pytest.raises(InputError, match=message):
        choose_threshold(POINTS, **wish)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        *[("1.2", Budget(1.2)), ("2", Budget(2)), (" 1. ", Budget(1)), (".5", Budget(0.5)), ("999", Budget(999))],
        *[("70M", Budget(70e6, "MACs")), ("4.1G", Budget(4.1e9, "MACs")), ("4.1 G", Budget(4.1e9, "MACs"))],
        *[("1000", Budget(1000, "MACs")), ("7e7", Budget(7e7, "MACs")), ("0.5k", Budget(500, "MACs"))],
    ],
)
def test_budgets_as_they_are_typed(text, budget):
    assert parse_budget(text) == (pytest.approx(budget.amount), budget.unit)


@pytest.mark.parametrize("text", ["", "M", "0", "0M", "-1", "nan", "inf", "1e999", "1,2", "70m", "70MB", "1.2x", "1 2"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(InputError, match=r"compute budget '.*': give a number such as 1.2"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        *[(49.4e6, "49.4 M"), (100.2e6, "100 M"), (4.104e9, "4.10 G"), (1e6, "1.00 M"), (2.5e12, "2.50 T")],
        *[(1500, "1.50 k"), (37, "37.0"), (0.5, "0.50")],
    ],
)
def test_multiply_accumulates_in_words(number, text):
    assert macs(number) == text


def test_corners_are_plain_numbers():
    logits, router_logits, labels, costs, _ = outputs(3)
    right = hits(logits, labels)
    for plain in (curve(right, router_logits, labels, costs), oracle_curve(right, labels, costs)):
        assert json.loads(json.dumps(plain)) == [list(point) for point in plain]
    assert isinstance(oracle_curve(right, labels, costs)[0], CurvePoint)
