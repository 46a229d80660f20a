"""What a router costs and what it reaches, at every threshold; and which threshold to take.

Pure functions of what the experts and the router said, so that trying a threshold needs no network. Letters in shapes:
N images, E experts, C classes. Costs are multiply-accumulates (MACs) for one image, accuracies fractions from 0 to 1.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from longtail.data.imbalance import ShotThresholds, shot_groups
from longtail.evaluation.metrics import BLOCK, Scores, score
from longtail.models.router import experts_used
from longtail.utils.ensembles import Average, partial_ensembles
from longtail.utils.errors import InputError

ALL_EXPERTS, FIRST_EXPERT = -1.0, 1.0
"""The thresholds that a probability is always above, and never."""

POINTS = 200
"""How many a curve has at most: more cannot be told apart in a plot."""

ROUNDING = 1e-12
"""By which an accuracy or a cost may miss a limit that it meets but for rounding, relative to the number."""

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}


@dataclass(frozen=True)
class CostedScores(Scores):
    """What answers cost, and how accurate they are."""

    cost: float
    """Mean MACs of an image."""

    relative_cost: float
    """Over the cost of an image that the router stops after the first expert."""


@dataclass(frozen=True)
class RoutingResult(CostedScores):
    """A routing measured on one set of images. The inherited scores and costs are those of the routed answers."""

    threshold: float
    """An image goes on to the next expert where the router's probability is above it."""

    shares: tuple[float, ...]
    """Shard of the images that used k + 1 experts (E); they sum to 1."""

    mean_experts: float
    """Experts used, mean over images."""

    mean_experts_by_shot: dict[str, float | None]
    """The same over the images of many-, medium- and few-shot classes; None where there are none. Images count once,
    not classes, so that the groups' means make up the one of all images."""

    prefixes: tuple[CostedScores, ...]
    """The ensembles of the first expert, of the first two, ..., of all (E), on every image and without a router."""

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, ready for JSON."""
        lists = {"shares": list(self.shares), "prefixes": [asdict(prefix) for prefix in self.prefixes]}
        return asdict(self) | lists


class OperatingPoint(NamedTuple):
    """What one threshold yields."""

    threshold: float
    cost: float
    """Mean MACs of an image"""
    accuracy: float
    balanced: float
    """Mean of the classes' accuracies"""


class CurvePoint(NamedTuple):
    """Where a curve of straight pieces bends."""

    cost: float
    accuracy: float


class Budget(NamedTuple):
    """The most that an image may cost in the mean."""

    amount: float
    unit: Literal["first expert", "MACs"] = "first expert"
    """"first expert": times the cost of an image that stops after the first one"""


def prefix_predictions(logits: Tensor, average: Average = "logits") -> Tensor:
    """Classes predicted by the first expert, by the first two, ..., by all: (N, E, C) -> (N, E)."""
    # In blocks: the means of all images at once would need as much memory as the logits.
    return torch.cat([partial_ensembles(block, average).argmax(dim=2) for block in torch.split(logits, BLOCK)])


def routing(
    logits: Tensor,
    router_logits: Tensor,
    labels: Tensor,
    class_counts: Sequence[int],
    costs: Sequence[float],
    prefix_costs: Sequence[float],
    threshold: float,
    *,
    many_above: int = 100,
    few_below: int = 20,
    average: Average = "logits",
) -> RoutingResult:
    """What routing with one threshold costs and reaches, beside the ensembles that need no router.

    Args:
        logits: every expert's (N, E, C), on the CPU.
        router_logits: of every step (N, E - 1).
        labels: (N,).
        class_counts: training images of each class, C numbers.
        costs: MACs of an image that used k + 1 experts, with the router's steps; E increasing numbers.
        prefix_costs: MACs of the first k + 1 experts without a router; E increasing numbers.
        threshold: one for all steps.
        many_above: many-shot classes have more training images than this.
        few_below: few-shot classes have fewer.
        average: what of the experts makes the answers.
    """
    predictions, used = prefix_predictions(logits, average), experts_used(router_logits, threshold)

    def priced(chosen: Tensor, cost: float) -> dict[str, Any]:
        scores = score(chosen, labels, class_counts, many_above=many_above, few_below=few_below)
        return vars(scores) | {"cost": float(cost), "relative_cost": cost / costs[0]}

    shares = torch.bincount(used - 1, minlength=logits.shape[1]).double() / len(used)
    groups = shot_groups(class_counts, ShotThresholds(many_above, few_below))
    by_shot = {shot: used[torch.from_numpy(mask)[labels]].double() for shot, mask in groups.items()}
    return RoutingResult(
        **priced(
            predictions.gather(1, used[:, None] - 1).squeeze(1),
            math.fsum(share * cost for share, cost in zip(shares.tolist(), costs, strict=True)),
        ),
        threshold=threshold,
        shares=tuple(shares.tolist()),
        mean_experts=float(used.double().mean()),
        mean_experts_by_shot={shot: float(own.mean()) if len(own) else None for shot, own in by_shot.items()},
        prefixes=tuple(
            CostedScores(**priced(own, cost)) for own, cost in zip(predictions.unbind(dim=1), prefix_costs, strict=True)
        ),
    )


def curve(
    right: Tensor, router_logits: Tensor, labels: Tensor, costs: Sequence[float], *, points: int = POINTS
) -> list[OperatingPoint]:
    """Every trade-off that one threshold for all steps offers, from the first expert alone to all experts.

    Thresholds lie between the router's probabilities, so that each point is another behaviour; where these are more
    than ``points``, about as many images change theirs from one point to the next.

    Args:
        right: whether the ensemble of the first k + 1 experts is right, (N, E).
        router_logits: of every step (N, E - 1).
        labels: (N,).
        costs: MACs of an image that used k + 1 experts, with the router's steps; E increasing numbers.
        points: how many at most.
    """
    # An image takes step k where this and all earlier probabilities are above the threshold: where the least of them
    # is. A router that yields nan lets nothing pass, whatever the threshold.
    least = router_logits.sigmoid().nan_to_num(nan=ALL_EXPERTS).cummin(dim=1).values  # (N, E - 1)
    thresholds = _thresholds(least, points)
    below = torch.searchsorted(thresholds, least.contiguous())  # at how many thresholds an image takes the step

    def at_thresholds(rows: Tensor, changes: Tensor, num_rows: int) -> Tensor:
        """Sums of the changes by row, over the steps that are taken at each threshold: (rows, thresholds)."""
        width = len(thresholds) + 1
        cells = torch.bincount(
            (rows * width + below).flatten(), changes.double().flatten(), minlength=num_rows * width
        ).view(num_rows, width)
        return cells.flip(1).cumsum(1).flip(1)[:, 1:]

    totals = torch.bincount(labels)
    num_classes, num_steps = len(totals), least.shape[1]
    # Counts, and so exact; only what follows is rounded.
    gained = at_thresholds(labels[:, None], right.long().diff(dim=1), num_classes)
    hits = torch.bincount(labels[right[:, 0]], minlength=num_classes)[:, None] + gained
    steps = at_thresholds(torch.arange(num_steps), torch.ones_like(least), num_steps)

    extra = torch.tensor(costs, dtype=torch.float64).diff()
    cost = costs[0] + extra @ steps / len(labels)
    accuracy = hits.sum(dim=0) / len(labels)
    tested = totals > 0
    balanced = (hits[tested] / totals[tested, None]).mean(dim=0)
    columns = (values.flip(0).tolist() for values in (thresholds, cost, accuracy, balanced))
    return [OperatingPoint(*values) for values in zip(*columns, strict=True)]


def _thresholds(least: Tensor, points: int) -> Tensor:
    """All thresholds that matter, at most ``points``, in increasing order."""
    values, numbers = torch.unique(least, return_counts=True)
    between = (values[:-1] + values[1:]) / 2
    if len(between) > points - 2:
        wanted = torch.linspace(0, least.numel(), points, dtype=torch.float64)[1:-1]
        between = between[torch.searchsorted(numbers.cumsum(0)[:-2].double(), wanted)]
    ends = between.new_tensor([ALL_EXPERTS, FIRST_EXPERT])
    thresholds: Tensor = torch.unique(torch.cat([ends, between]))
    return thresholds


def random_curve(accuracies: Sequence[float], costs: Sequence[float]) -> list[CurvePoint]:
    """What drawing the number of experts of each image by lot reaches at best: the upper hull of the prefixes' points.

    A router is worth its while where it lies above.

    Args:
        accuracies: of the ensembles of the first k + 1 experts, E numbers.
        costs: theirs in MACs, E increasing numbers.
    """
    hull: list[CurvePoint] = []
    for corner in map(CurvePoint, costs, accuracies):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], corner):
            hull.pop()
        hull.append(corner)
    return hull


def _slope(first: CurvePoint, second: CurvePoint) -> float:
    return (second.accuracy - first.accuracy) / (second.cost - first.cost)


def oracle_curve(right: Tensor, labels: Tensor, costs: Sequence[float], *, balanced: bool = True) -> list[CurvePoint]:
    """What no router can surpass: the highest accuracy for each cost, by one that knows the labels.

    It sends an image on only to the first ensemble that is right, and those images first that gain the most for what
    they cost.

    Args:
        right: whether the ensemble of the first k + 1 experts is right, (N, E).
        labels: (N,).
        costs: MACs of an image that used k + 1 experts, E increasing numbers.
        balanced: every class counts once, instead of every image.
    """
    num_images, num_experts = right.shape
    totals = torch.bincount(labels)
    weights = 1 / (totals * (totals > 0).sum()).double() if balanced else torch.full((len(totals),), 1 / num_images)
    gain = weights.double()[labels]
    start = CurvePoint(float(costs[0]), float(gain[right[:, 0]].sum()))

    wrong_before = (~right).long().cumprod(dim=1).sum(dim=1)  # ensembles that are wrong before the first right one
    movable = (wrong_before > 0) & (wrong_before < num_experts)
    prices = (torch.tensor(costs, dtype=torch.float64) - costs[0])[wrong_before[movable]]
    gain = gain[movable]
    yields, order = (gain / prices).sort(descending=True)
    spent, won = prices[order].cumsum(0) / num_images, gain[order].cumsum(0)
    bends = torch.ones_like(order, dtype=torch.bool)  # between images of equal yield the curve is straight
    bends[:-1] = yields[:-1] > yields[1:]
    moved = zip(spent[bends].tolist(), won[bends].tolist(), strict=True)
    corners = [start, *(CurvePoint(start.cost + cost, start.accuracy + accuracy) for cost, accuracy in moved)]
    return [*corners, CurvePoint(float(costs[-1]), corners[-1].accuracy)]  # more than that cannot be bought


def choose_threshold(
    points: Sequence[OperatingPoint], *, compute_budget: Budget | None = None, max_accuracy_drop: float | None = None
) -> float:
    """The threshold that a wish asks for, on the images of a curve; on others it holds about as well.

    Args:
        points: see `curve`.
        compute_budget: the most accurate (balanced) point that costs no more; of equals the cheapest.
        max_accuracy_drop: the cheapest point whose balanced accuracy is at most so many percentage points below that
            of all experts.

    Raises:
        InputError: none or both are given, or nothing satisfies what is given.
    """
    if (compute_budget is None) == (max_accuracy_drop is None):
        raise InputError("either a compute budget or a largest drop of accuracy chooses a threshold: give one of them")
    first = min(points, key=lambda point: point.cost)
    most = max(points, key=lambda point: point.cost)
    if compute_budget is not None:
        budget = compute_budget.amount * (1 if compute_budget.unit == "MACs" else first.cost)
        affordable = [point for point in points if point.cost <= budget * (1 + ROUNDING)]
        if not affordable:
            raise InputError(
                f"a compute budget of {macs(budget)} MACs an image is below the first expert's cost: from "
                f"{macs(first.cost)} (1 times the first expert) to {macs(most.cost)} "
                f"({most.cost / first.cost:.2f} times) can be had"
            )
        return max(affordable, key=lambda point: (point.balanced, -point.cost)).threshold
    assert max_accuracy_drop is not None
    wanted = most.balanced - max_accuracy_drop / 100
    accurate = [point for point in points if point.balanced >= wanted - ROUNDING]
    if not accurate:
        best, worst = (100 * (most.balanced - choose(p.balanced for p in points)) for choose in (max, min))
        raise InputError(
            f"no threshold has a drop of accuracy of {max_accuracy_drop:g} percentage points or less; they have "
            f"{best:.2f} to {worst:.2f}"
        )
    return min(accurate, key=lambda point: point.cost).threshold


def parse_budget(text: str) -> Budget:
    """A budget as it is typed: "1.2" is times the first expert's cost; "70M", "4.1G" or at least "1000" are MACs.

    Raises:
        InputError: the text is none of these.
    """
    match = re.fullmatch(r"(\d+\.?\d*(?:[eE]\+?\d+)?|\.\d+)\s*([kMGT]?)", text.strip())
    amount = float(match[1]) * UNITS[match[2]] if match else 0
    if match is None or not 0 < amount < math.inf:
        raise InputError(
            f"compute budget '{text}': give a number such as 1.2 (times the cost of the first expert), or "
            f"multiply-accumulates an image such as 70M or 4.1G"
        )
    return Budget(amount, "MACs" if match[2] or amount >= 1000 else "first expert")


def macs(number: float) -> str:
    """Multiply-accumulates with three digits and a unit: "72.3 M"."""
    unit, size = macs_unit(number)
    return f"{number / size:.{max(0, 2 - int(math.log10(max(number / size, 1))))}f} {unit}".rstrip()


def macs_unit(number: float) -> tuple[str, float]:
    """The largest unit that a number of multiply-accumulates is at least one of, and its size."""
    return next(((unit, size) for unit, size in reversed(UNITS.items()) if number >= size), ("", 1.0))
