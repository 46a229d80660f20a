"""Routing: its cost and accuracy, at one threshold and at all of them, and the choice of a threshold.

Pure functions of the outputs of experts and router, so that another threshold needs no network. Letters in shapes:
N images, E experts, C classes. Costs are multiply-accumulates (MACs) for one image, accuracies fractions from 0 to 1.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from longtail.data.imbalance import DEFAULT_THRESHOLDS, ShotThresholds, shot_groups
from longtail.evaluation.flops import Cost
from longtail.evaluation.metrics import BLOCK, Scores, image_metrics, score
from longtail.evaluation.outputs import ModelOutputs
from longtail.evaluation.throughput import Speed
from longtail.models.router import experts_used
from longtail.utils.choices import Average
from longtail.utils.ensembles import partial_ensembles
from longtail.utils.errors import InputError
from longtail.utils.format import UNITS, macs

ALL_EXPERTS, FIRST_EXPERT = -1.0, 1.0
"""Thresholds below and above all probabilities of a router"""

POINTS = 200
"""Maximum number of points of a curve, enough for a plot"""

ROUNDING = 1e-12
"""Relative rounding error that is accepted when a cost or an accuracy is compared with a limit"""


@dataclass(frozen=True)
class CostedScores(Scores):
    """Accuracies and the cost at which they are reached."""

    cost: float
    """Mean MACs for one image"""

    relative_cost: float
    """Cost relative to an image that the router stops after the first expert"""


class OperatingPoint(NamedTuple):
    """Cost and accuracy at one threshold."""

    threshold: float

    cost: float
    """Mean MACs for one image"""

    accuracy: float

    balanced: float
    """Mean of the classes' accuracies"""


class CurvePoint(NamedTuple):
    """A vertex of a piecewise linear curve."""

    cost: float
    accuracy: float


class Budget(NamedTuple):
    """Maximum mean cost of an image."""

    amount: float

    unit: Literal["first expert", "MACs"] = "first expert"
    """"first expert": multiples of the cost of an image that stops after the first expert"""


@dataclass(frozen=True)
class RoutingReport(CostedScores):
    """Routing on one set of images. The inherited scores and costs are those of the routed predictions."""

    threshold: float
    """An image continues to the next expert if the router's probability is above it"""

    shares: list[float]
    """Fraction of the images that used k + 1 experts (E); they sum to 1"""

    mean_experts: float
    """Experts used, mean over images"""

    mean_experts_by_shot: dict[str, float | None]
    """Experts used, mean over the images (not classes) of each shot group; None without images"""

    shares_by_shot: dict[str, list[float] | None]
    """``shares`` of the images of each shot group; None without images"""

    prefixes: list[CostedScores]
    """Ensembles of the first 1 to E experts, on every image and without a router (E)"""

    ece: float | None
    """Expected calibration error of the routed predictions; None if a logit is not finite"""

    uncalibrated_ece: float | None
    """The same at temperature 1"""

    num_views: int
    """Views of each image; costs count all of them"""

    chosen_on: str | None
    """The split on which the threshold was chosen; None if it was set"""

    images_per_second: Speed | None
    """None if it was not measured"""

    curve: list[OperatingPoint]
    """Routing at other thresholds"""

    random_curve: list[CurvePoint]
    """Cost and balanced accuracy of random routing"""

    oracle_curve: list[CurvePoint]
    """Cost and balanced accuracy of the best possible routing, which knows the labels"""

    def as_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        curves = {name: getattr(self, name) for name in ("curve", "random_curve", "oracle_curve")}
        return asdict(self) | {name: [point._asdict() for point in points] for name, points in curves.items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "RoutingReport":
        """Returns the report of which `as_dict` made ``content``."""
        speed = content["images_per_second"]
        return cls(
            **dict(content)
            | {
                "prefixes": [CostedScores(**scores) for scores in content["prefixes"]],
                "images_per_second": speed and Speed(**speed),
                "curve": [OperatingPoint(**point) for point in content["curve"]],
                "random_curve": [CurvePoint(**point) for point in content["random_curve"]],
                "oracle_curve": [CurvePoint(**point) for point in content["oracle_curve"]],
            }
        )


def prefix_predictions(logits: Tensor, average: Average = "logits") -> Tensor:
    """Returns the classes predicted by the ensembles of the first 1 to E experts: (N, E, C) -> (N, E)."""
    # In blocks: the means of all images at once would need as much memory as the logits.
    return torch.cat([partial_ensembles(block, average).argmax(dim=2) for block in torch.split(logits, BLOCK)])


def routed_logits(outputs: ModelOutputs, used: Tensor) -> Iterator[Tensor]:
    """Yields the logits of routed images, at most `BLOCK` images at a time: (B, C) each.

    Args:
        outputs: of a model for N images.
        used: number of experts that run on each image, (N,).
    """
    for logits, number in zip(torch.split(outputs.logits, BLOCK), torch.split(used, BLOCK), strict=True):
        yield partial_ensembles(logits, outputs.average)[torch.arange(len(number)), number - 1]


def evaluate_routing(
    outputs: ModelOutputs,
    class_counts: Sequence[int],
    cost: Cost,
    threshold: float,
    *,
    thresholds: ShotThresholds = DEFAULT_THRESHOLDS,
    bins: int = 15,
    chosen_on: str | None = None,
    images_per_second: Speed | None = None,
) -> RoutingReport:
    """Evaluates routing with one threshold, other thresholds, and the ensembles that need no router.

    Args:
        outputs: of a model with a router.
        class_counts: training images of each class, C numbers.
        cost: of the model for one view of an image.
        threshold: of the router, for all steps.
        thresholds: limits of the shot groups.
        bins: number of bins of the calibration error.
        chosen_on: the split on which the threshold was chosen, if any.
        images_per_second: measured speed, for the report.
    """
    assert outputs.router_logits is not None
    cost = cost.times(outputs.num_views)
    labels, routed_costs, prefix_costs = outputs.labels, cost.routed_costs, cost.prefix_costs
    used = experts_used(outputs.router_logits, threshold)
    predictions = prefix_predictions(outputs.logits, outputs.average)
    correct = predictions == labels[:, None]
    shares = _shares(used, cost.num_experts)
    mean_cost = math.fsum(share * routed for share, routed in zip(shares, routed_costs, strict=True))
    groups = shot_groups(class_counts, thresholds)
    used_by_shot = {shot: used[torch.from_numpy(mask)[labels]] for shot, mask in groups.items()}

    def costed(classes: Tensor, mean: float) -> dict[str, Any]:
        scores = score(classes, labels, class_counts, thresholds=thresholds)
        return vars(scores) | {"cost": float(mean), "relative_cost": mean / routed_costs[0]}

    images = image_metrics(routed_logits(outputs, used), labels, outputs.temperature)
    binned, uncalibrated = images.calibrations(labels, bins)
    prefixes = [CostedScores(**costed(*pair)) for pair in zip(predictions.unbind(1), prefix_costs, strict=True)]
    return RoutingReport(
        **costed(predictions.gather(1, used[:, None] - 1).squeeze(1), mean_cost),
        threshold=threshold,
        shares=shares,
        mean_experts=float(used.double().mean()),
        mean_experts_by_shot={
            shot: float(of.double().mean()) if len(of) else None for shot, of in used_by_shot.items()
        },
        shares_by_shot={shot: _shares(of, cost.num_experts) if len(of) else None for shot, of in used_by_shot.items()},
        prefixes=prefixes,
        num_views=outputs.num_views,
        ece=binned.error if binned else None,
        uncalibrated_ece=uncalibrated.error if uncalibrated else None,
        chosen_on=chosen_on,
        images_per_second=images_per_second,
        curve=curve(correct, outputs.router_logits, labels, routed_costs),
        # Neither random nor oracle routing needs the router's steps.
        random_curve=random_curve([prefix.balanced for prefix in prefixes], prefix_costs),
        oracle_curve=oracle_curve(correct, labels, prefix_costs),
    )


def _shares(used: Tensor, num_experts: int) -> list[float]:
    """Returns the fraction of the images that used 1 to E experts, from the number that each one used."""
    shares: list[float] = (torch.bincount(used - 1, minlength=num_experts).double() / len(used)).tolist()
    return shares


def curve(
    correct: Tensor, router_logits: Tensor, labels: Tensor, costs: Sequence[float], *, points: int = POINTS
) -> list[OperatingPoint]:
    """Returns cost and accuracy at all thresholds, from the first expert alone to all experts.

    Thresholds are midpoints between the router's probabilities, so that each point routes differently. If there are
    more than ``points``, about the same number of images changes from each point to the next.

    Args:
        correct: whether the ensemble of the first k + 1 experts is correct, (N, E).
        router_logits: of all steps, (N, E - 1).
        labels: (N,).
        costs: MACs of an image that used k + 1 experts, with the router; E increasing numbers.
        points: maximum number of points.
    """
    # An image takes step k if this and all earlier probabilities are above the threshold, that is if their minimum is.
    # A router whose output is nan lets no image continue, whatever the threshold.
    lowest = router_logits.sigmoid().nan_to_num(nan=ALL_EXPERTS).cummin(dim=1).values  # (N, E - 1)
    thresholds = _thresholds(lowest, points)
    below = torch.searchsorted(thresholds, lowest.contiguous())  # number of thresholds at which an image takes the step

    def at_thresholds(rows: Tensor, changes: Tensor, num_rows: int) -> Tensor:
        """Sums of the changes by row, over the steps that are taken at each threshold: (rows, thresholds)."""
        width = len(thresholds) + 1
        cells = torch.bincount(
            (rows * width + below).flatten(), changes.double().flatten(), minlength=num_rows * width
        ).view(num_rows, width)
        return cells.flip(1).cumsum(1).flip(1)[:, 1:]

    totals = torch.bincount(labels)
    num_classes, num_steps = len(totals), lowest.shape[1]
    # Counts are exact. Only the divisions below round.
    gained = at_thresholds(labels[:, None], correct.long().diff(dim=1), num_classes)
    hits = torch.bincount(labels[correct[:, 0]], minlength=num_classes)[:, None] + gained
    steps = at_thresholds(torch.arange(num_steps), torch.ones_like(lowest), num_steps)

    extra = torch.tensor(costs, dtype=torch.float64).diff()
    cost = costs[0] + extra @ steps / len(labels)
    accuracy = hits.sum(dim=0) / len(labels)
    has_images = totals > 0
    balanced = (hits[has_images] / totals[has_images, None]).mean(dim=0)
    columns = (values.flip(0).tolist() for values in (thresholds, cost, accuracy, balanced))
    return [OperatingPoint(*values) for values in zip(*columns, strict=True)]


def _thresholds(lowest: Tensor, points: int) -> Tensor:
    """All thresholds that route differently, at most ``points``, in increasing order."""
    values, counts = torch.unique(lowest, return_counts=True)
    between = (values[:-1] + values[1:]) / 2
    if len(between) > points - 2:
        targets = torch.linspace(0, lowest.numel(), points, dtype=torch.float64)[1:-1]
        between = between[torch.searchsorted(counts.cumsum(0)[:-2].double(), targets)]
    ends = between.new_tensor([ALL_EXPERTS, FIRST_EXPERT])
    thresholds: Tensor = torch.unique(torch.cat([ends, between]))
    return thresholds


def random_curve(accuracies: Sequence[float], costs: Sequence[float]) -> list[CurvePoint]:
    """Returns the best accuracies of random routing: the upper hull of the prefixes' points.

    A router is useful if it is above this curve.

    Args:
        accuracies: of the ensembles of the first k + 1 experts, E numbers.
        costs: of these ensembles in MACs, E increasing numbers.
    """
    hull: list[CurvePoint] = []
    for point in map(CurvePoint, costs, accuracies):
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], point):
            hull.pop()
        hull.append(point)
    return hull


def _slope(first: CurvePoint, second: CurvePoint) -> float:
    return (second.accuracy - first.accuracy) / (second.cost - first.cost)


def oracle_curve(correct: Tensor, labels: Tensor, costs: Sequence[float]) -> list[CurvePoint]:
    """Returns the highest balanced accuracy that any router can reach at each cost, with knowledge of the labels.

    An image continues only to the first ensemble that is correct. The images that gain the most for their cost continue
    first.

    Args:
        correct: whether the ensemble of the first k + 1 experts is correct, (N, E).
        labels: (N,).
        costs: MACs of an image that used k + 1 experts, E increasing numbers.
    """
    num_images, num_experts = correct.shape
    totals = torch.bincount(labels)
    gain = (1 / (totals * (totals > 0).sum()).double())[labels]
    start = CurvePoint(float(costs[0]), float(gain[correct[:, 0]].sum()))

    wrong_before = (~correct).long().cumprod(dim=1).sum(dim=1)  # ensembles before the first correct one
    movable = (wrong_before > 0) & (wrong_before < num_experts)
    prices = (torch.tensor(costs, dtype=torch.float64) - costs[0])[wrong_before[movable]]
    gain = gain[movable]
    yields, order = (gain / prices).sort(descending=True)
    spent, won = prices[order].cumsum(0) / num_images, gain[order].cumsum(0)
    bends = torch.ones_like(order, dtype=torch.bool)  # the curve is straight between images of equal yield
    bends[:-1] = yields[:-1] > yields[1:]
    moved = zip(spent[bends].tolist(), won[bends].tolist(), strict=True)
    points = [start, *(CurvePoint(start.cost + cost, start.accuracy + accuracy) for cost, accuracy in moved)]
    return [*points, CurvePoint(float(costs[-1]), points[-1].accuracy)]


def choose_threshold(
    points: Sequence[OperatingPoint], *, compute_budget: Budget | None = None, max_accuracy_drop: float | None = None
) -> float:
    """Returns the threshold that meets a goal on the images of a curve. Exactly one goal must be set.

    Args:
        points: see `curve`.
        compute_budget: chooses the point with the highest balanced accuracy within the budget; the cheapest if several
            are equal.
        max_accuracy_drop: chooses the cheapest point whose balanced accuracy is at most this many percentage points
            below that of all experts.

    Raises:
        InputError: none or both goals are set, or no threshold meets the goal.
    """
    if (compute_budget is None) == (max_accuracy_drop is None):
        raise InputError("set either a compute budget or a maximum accuracy drop")
    first = min(points, key=lambda point: point.cost)
    last = max(points, key=lambda point: point.cost)
    if compute_budget is not None:
        limit = compute_budget.amount * (1 if compute_budget.unit == "MACs" else first.cost)
        affordable = [point for point in points if point.cost <= limit * (1 + ROUNDING)]
        if not affordable:
            raise InputError(
                f"the compute budget is {macs(limit)} MACs per image, less than the first expert's cost; set it to "
                f"{macs(first.cost)} (1 times the first expert) up to {macs(last.cost)} "
                f"({last.cost / first.cost:.2f} times)"
            )
        return max(affordable, key=lambda point: (point.balanced, -point.cost)).threshold
    assert max_accuracy_drop is not None
    min_accuracy = last.balanced - max_accuracy_drop / 100
    accurate = [point for point in points if point.balanced >= min_accuracy - ROUNDING]
    if not accurate:
        min_drop, max_drop = (100 * (last.balanced - pick(p.balanced for p in points)) for pick in (max, min))
        raise InputError(
            f"no threshold has an accuracy drop of at most {max_accuracy_drop:g} percentage points; the drops are "
            f"{min_drop:.2f} to {max_drop:.2f}"
        )
    return min(accurate, key=lambda point: point.cost).threshold


def parse_budget(text: str) -> Budget:
    """Parses a budget: "1.2" is a multiple of the cost of the first expert; "70M" and numbers from 1000 on are MACs.

    Raises:
        InputError: the text is none of these.
    """
    match = re.fullmatch(r"(\d+\.?\d*(?:[eE]\+?\d+)?|\.\d+)\s*([kMGT]?)", text.strip())
    amount = float(match[1]) * UNITS[match[2]] if match else 0
    if match is None or not 0 < amount < math.inf:
        raise InputError(
            f"compute budget '{text}': write a number such as 1.2 (times the cost of the first expert), or "
            "multiply-accumulates per image such as 70M or 4.1G"
        )
    return Budget(amount, "MACs" if match[2] or amount >= 1000 else "first expert")
