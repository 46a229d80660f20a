"""All that is to be told of a routing, in one piece: for the page, the terminal and the results file."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from longtail.evaluation import routing
from longtail.evaluation.routing import CurvePoint, OperatingPoint, RoutingResult
from longtail.evaluation.throughput import Speed
from longtail.utils.ensembles import Average


@dataclass(frozen=True)
class RoutingReport:
    """One threshold on one set of images, and what there is to compare it with."""

    result: RoutingResult

    curve: Sequence[OperatingPoint]
    """What other thresholds yield"""

    chance: Sequence[CurvePoint]
    """Cost and balanced accuracy of random routing"""

    oracle: Sequence[CurvePoint]
    """Of a routing that knows the labels"""

    speed: Speed | None = None
    """None where it was not measured"""

    chosen_on: str | None = None
    """The part of the data on which the threshold was chosen; None where it was given"""

    @classmethod
    def of(
        cls,
        result: RoutingResult,
        logits: Tensor,
        router_logits: Tensor,
        labels: Tensor,
        costs: Sequence[float],
        *,
        speed: Speed | None = None,
        chosen_on: str | None = None,
        average: Average = "logits",
    ) -> "RoutingReport":
        """A routing beside what else is possible on the same images; arguments as of `longtail.evaluation.routing.routing`."""
        right = routing.prefix_predictions(logits, average) == labels[:, None]
        # Neither lot nor oracle needs a router's steps.
        prefix_costs = [prefix.cost for prefix in result.prefixes]
        return cls(
            result,
            routing.curve(right, router_logits, labels, costs),
            routing.random_curve([prefix.balanced for prefix in result.prefixes], prefix_costs),
            routing.oracle_curve(right, labels, prefix_costs),
            speed,
            chosen_on,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and None, ready for JSON."""
        return self.result.as_dict() | {
            "chosen_on": self.chosen_on,
            "images_per_second": self.speed and self.speed.as_dict(),
            "curve": [point._asdict() for point in self.curve],
            "random_curve": [corner._asdict() for corner in self.chance],
            "oracle_curve": [corner._asdict() for corner in self.oracle],
        }
