"""The report of a run as one HTML file, report.html."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longtail.config.recipes import to_yaml
from longtail.data.imbalance import SHOTS
from longtail.data.splits import ImageSplit
from longtail.data.views import NUM_VIEWS
from longtail.evaluation.image_outputs import ImageOutputs
from longtail.evaluation.metrics import Evaluation
from longtail.evaluation.routing import RoutingReport
from longtail.evaluation.significance import balanced_interval
from longtail.reports.html import charts
from longtail.reports.html.budget import BudgetPoint, budget_points
from longtail.reports.html.classes import class_cells
from longtail.reports.html.examples import (
    confused_pairs,
    disagreements,
    images_of,
    surest_mistakes,
    wrong_labels,
)
from longtail.reports.html.pictures import Pictures
from longtail.reports.html.render import render
from longtail.reports.html.svg import stacked_bar
from longtail.reports.html.text import accuracy_interval, clean, interval, probability
from longtail.reports.page import RunReport, class_size_table, plain, results_table
from longtail.reports.tables import accuracy_table, routing_notes, routing_table, speed_note
from longtail.utils.files import write_atomically
from longtail.utils.format import macs, percent, pluralize, rate, unit_of

HTML_FILE = "report.html"


def write_html(folder: Path, report: RunReport, outputs: ImageOutputs, images: ImageSplit | None) -> None:
    """Writes ``report.html`` into a run folder.

    Args:
        folder: of the run.
        report: its content.
        outputs: of the model for the test images.
        images: the test images, for pictures; None: they cannot be read.
    """
    write_atomically(folder / HTML_FILE, render("report.html.j2", **_content(folder, report, outputs, images)))


def _content(folder: Path, report: RunReport, outputs: ImageOutputs, images: ImageSplit | None) -> dict[str, Any]:
    """Everything that the template shows."""
    config, evaluation, routing = report.config, report.evaluation, report.routing
    names = [clean(name) for name in report.class_names]
    examples = _Examples(outputs, names, Pictures(images, Path(config.data.root)), evaluation)
    return {
        "title": clean(config.name),
        "result": _result(evaluation),
        "routed_result": None if routing is None else _routed_result(evaluation, routing),
        "facts": dict(_facts(report)),
        "tables": {
            "results": results_table(report.evaluations),
            "class_size": class_size_table(report),
            "experts": accuracy_table(evaluation) if len(evaluation.experts) > 1 else None,
            "routing": None if routing is None else routing_table(routing),
        },
        "disagreement": evaluation.disagreement,
        "routing_notes": [] if routing is None else routing_notes(routing),
        "budget": None if routing is None else _budget(report, routing, outputs),
        "class_chart": charts.class_chart(evaluation, report.class_names, report.class_counts),
        "class_rows": list(class_cells(report, outputs, names)),
        "num_classes": len(names),
        "has_experts": len(evaluation.experts) > 1,
        "shots": SHOTS,
        "temperature": evaluation.temperature,
        "calibration": charts.calibration_charts(evaluation, outputs),
        "history": charts.history_charts(report.history),
        "has_pictures": images is not None,
        "mistakes": [examples.of(k) for k in surest_mistakes(outputs)],
        "num_mistakes": int((outputs.predictions != outputs.labels).sum()),
        "disagreements": [examples.of(k, experts=True) for k in disagreements(outputs)],
        "pairs": list(examples.pairs()),
        "wrong_labels": examples.wrong_labels(),
        "predictions": report.predictions,
        "settings": to_yaml(config).rstrip(),
        "environment": {clean(key): clean(plain(value), 1000) for key, value in report.environment.items()},
        "commands": _commands(folder, report),
    }


def _result(evaluation: Evaluation) -> dict[str, str]:
    totals = np.asarray(evaluation.test_counts)
    return {
        "images": pluralize(evaluation.num_images, "test image") + (" is" if evaluation.num_images == 1 else " are"),
        "accuracy": percent(evaluation.accuracy),
        "accuracy_interval": accuracy_interval(evaluation.accuracy, evaluation.num_images),
        "balanced": percent(evaluation.balanced),
        "balanced_interval": interval(*balanced_interval(np.diag(evaluation.confusion), totals)),
    }


def _routed_result(evaluation: Evaluation, routing: RoutingReport) -> dict[str, str]:
    return {
        "mean_experts": f"{routing.mean_experts:.2f}",
        "num_experts": str(len(routing.prefixes)),
        "share_of_cost": f"{100 * routing.cost / routing.prefixes[-1].cost:.0f}",
        "accuracy": percent(routing.accuracy),
        "accuracy_interval": accuracy_interval(routing.accuracy, evaluation.num_images),
        "balanced": percent(routing.balanced),
    }


def _facts(report: RunReport) -> Iterator[tuple[str, str]]:
    config, evaluation = report.config, report.evaluation
    largest, smallest = max(report.class_counts), min(report.class_counts)
    rarest = f"{smallest:,} ({largest / smallest:,.4g} to 1)" if smallest else "none"
    yield "Data", clean(config.data.name)
    yield (
        "Training images",
        f"{sum(report.class_counts):,} in {pluralize(len(report.class_counts), 'class', 'classes')}",
    )
    yield "Most common, rarest class", f"{largest:,}, {rarest}"
    yield "Model", f"{clean(config.model.backbone)}, {pluralize(config.model.num_experts, 'expert')}"
    if report.history:
        yield "Training", f"{report.epochs_and_time}, {config.loss.name} loss, seed {config.seed}"
    if config.classifier.method != "none":
        yield "Classifiers", f"replaced afterwards: {config.classifier.method}"
    if config.model.num_experts > 1:
        yield "Prediction", f"mean of the experts' {evaluation.average}"
    if config.evaluation.views != "one":
        yield "Views of each test image", f"{NUM_VIEWS[config.evaluation.views]} ({config.evaluation.views})"
    if report.cost is not None:
        experts = "" if report.cost.num_experts == 1 else ", all experts"
        yield "Multiply-accumulates per image", f"{macs(report.cost.total)}{experts}"
    if report.speed is not None:
        yield "Speed", speed_note(report.speed).rstrip(".")


def _budget(report: RunReport, routing: RoutingReport, outputs: ImageOutputs) -> dict[str, Any]:
    """The slider: a chart, and for each of its positions the coordinates of the mark and the texts beside it."""
    assert report.cost is not None
    points, chosen = budget_points(outputs, routing, report.cost, report.class_counts, report.evaluation.thresholds)
    chart = charts.routing_chart(routing)
    _, size = unit_of(routing.curve[0].cost)
    positions = [
        [
            *chart.position((point.cost / size, 100 * point.scores.balanced)),
            list(_budget_texts(point)),
            [round(100 * share, 2) for share in point.shares],
        ]
        for point in points
    ]
    chart.marker((points[chosen].cost / size, 100 * points[chosen].scores.balanced))
    return {
        "chart": chart.render(),
        "names": BUDGET_NAMES,
        "data": {"positions": positions},
        "chosen": chosen,
        "texts": positions[chosen][2],
        "shares": positions[chosen][3],
        "bar": stacked_bar(points[chosen].shares, "Share of the images by number of experts"),
        "chosen_on": routing.chosen_on,
        "threshold": f"{routing.threshold:.4g}",
        "has_speed": points[chosen].images_per_second is not None,
    }


BUDGET_NAMES = (
    *("cost, × one expert", "MACs per image", "experts per image"),
    *("accuracy (%)", "balanced (%)", "many (%)", "medium (%)", "few (%)", "images/s, estimated", "threshold"),
)
"""Of the texts beside the slider"""


def _budget_texts(point: BudgetPoint) -> Iterator[str]:
    yield f"{point.relative_cost:.2f}"
    yield macs(point.cost)
    yield f"{point.mean_experts:.2f}"
    scores = point.scores
    yield from map(percent, (scores.accuracy, scores.balanced, scores.many, scores.medium, scores.few))
    yield rate(point.images_per_second)
    yield f"{point.threshold:.4g}"


class _Examples:
    """What the page shows of single images."""

    def __init__(self, outputs: ImageOutputs, names: Sequence[str], pictures: Pictures, evaluation: Evaluation):
        self.outputs, self.names, self.pictures, self.evaluation = outputs, names, pictures, evaluation

    def of(self, position: int, experts: bool = False) -> dict[str, Any]:
        """A picture with its classes, and the predictions of the experts if they are asked for."""
        outputs = self.outputs
        each = zip(outputs.experts[position].tolist(), outputs.expert_probabilities[position].tolist(), strict=True)
        return {
            "picture": self.pictures.picture(position),
            "path": clean(self.pictures.name(position), 200),
            "true": self.names[int(outputs.labels[position])],
            "predicted": self.names[int(outputs.predictions[position])],
            "is_correct": bool(outputs.labels[position] == outputs.predictions[position]),
            "probability": probability(float(outputs.probabilities[position])),
            "experts": [(self.names[label], probability(value)) for label, value in each] if experts else [],
        }

    def pairs(self) -> Iterator[dict[str, Any]]:
        """Pairs of confused classes, with images of both."""
        for sides in confused_pairs(self.evaluation):
            yield {
                "sides": [
                    {
                        "name": self.names[true],
                        "other": self.names[predicted],
                        "count": pluralize(count, "image") if count else "no image",
                        "share": percent(count / self.evaluation.test_counts[true]) if count else "",
                        "examples": [self.of(k) for k in images_of(self.outputs, true, predicted)],
                    }
                    for true, predicted, count in sides
                ]
            }

    def wrong_labels(self) -> list[dict[str, Any]] | None:
        """Labels that are likely to be wrong, with the suggested class; None if labels were not judged."""
        found, suggested = wrong_labels(self.outputs), self.outputs.suggested
        if found is None or suggested is None:
            return None
        return [self.of(k) | {"suggested": self.names[int(suggested[k])]} for k in found]


def _commands(folder: Path, report: RunReport) -> list[tuple[str, str]]:
    """Commands that make the run or the page again, and what they do."""
    run = clean(shlex.quote(str(folder)), 1000)
    again = clean(shlex.quote(str(folder / "config.yaml")), 1000)
    commands = [(f"longtail report {run}", "makes this page again")]
    if report.history:
        commands.insert(0, (f"longtail train --config {again}", "trains the same again, into a new folder"))
    commands.append((f"longtail check --run {run}", "looks for copies, damaged images and wrong labels in all splits"))
    return commands
