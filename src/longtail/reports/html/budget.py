"""The slider of the report page: what routing costs and reaches at each threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from longtail.data.imbalance import ShotThresholds
from longtail.evaluation.flops import Cost
from longtail.evaluation.image_outputs import ImageOutputs
from longtail.evaluation.metrics import Scores, score
from longtail.evaluation.routing import RoutingReport
from longtail.evaluation.throughput import Speed
from longtail.models.router import experts_used


@dataclass(frozen=True)
class BudgetPoint:
    """Routing at one threshold."""

    threshold: float
    cost: float
    """Mean MACs for one image"""
    relative_cost: float
    """Relative to an image that stops after the first expert"""
    scores: Scores
    shares: list[float]
    """Fraction of the images that used k + 1 experts (E)"""
    images_per_second: float | None
    """Estimated, see `estimated_speed`; None if speed was not measured"""

    @property
    def mean_experts(self) -> float:
        """Experts that an image uses on average."""
        return sum(share * number for number, share in enumerate(self.shares, start=1))


def budget_points(
    outputs: ImageOutputs,
    routing: RoutingReport,
    cost: Cost,
    class_counts: Sequence[int],
    thresholds: ShotThresholds,
) -> tuple[list[BudgetPoint], int]:
    """Returns the points of the routing curve, the cheapest first, and the position of the model's own threshold.

    Args:
        outputs: of a model with a router.
        routing: names the thresholds.
        cost: of the model for one image, with all its views.
        class_counts: training images of each class, C numbers.
        thresholds: limits of the shot groups.
    """
    assert outputs.router_logits is not None
    points = []
    different = sorted({point.threshold for point in routing.curve} | {routing.threshold}, reverse=True)
    for threshold in different:
        used = experts_used(outputs.router_logits, threshold)
        predictions = outputs.prefixes.gather(1, used[:, None] - 1).squeeze(1)
        shares = (torch.bincount(used - 1, minlength=cost.num_experts).double() / len(used)).tolist()
        mean = cost.expected(shares)
        points.append(
            BudgetPoint(
                threshold,
                mean,
                mean / cost.routed(1),
                score(predictions, outputs.labels, class_counts, thresholds=thresholds),
                shares,
                estimated_speed(routing.images_per_second, shares, routing.shares),
            )
        )
    return points, different.index(routing.threshold)


def estimated_speed(speed: Speed | None, shares: Sequence[float], measured_shares: Sequence[float]) -> float | None:
    """Returns images per second of a routing.

    The time of an image is the mean of the times of 1 to E experts, weighted by the shares of the images; times one
    factor, by which the measured routing is slower than that. At the measured routing it equals the measurement.

    Args:
        speed: measured; None if it was not.
        shares: of the images that use 1 to E experts, (E).
        measured_shares: the same for the routing that was measured.
    """
    if speed is None or not speed.routed:
        return None

    def seconds(of: Sequence[float]) -> float:
        return sum(share / rate for share, rate in zip(of, speed.prefixes, strict=True))

    return speed.routed * seconds(measured_shares) / seconds(shares)
