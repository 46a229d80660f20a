"""The charts of the report page."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from longtail.data.imbalance import SHOTS
from longtail.evaluation.image_outputs import ImageOutputs
from longtail.evaluation.metrics import Calibration, Evaluation, calibration
from longtail.evaluation.routing import RoutingReport
from longtail.evaluation.significance import wilson_interval
from longtail.reports.html.svg import MAX_POINTS, Axis, Chart, axis_around, percent_axis, thinned
from longtail.reports.html.text import clean
from longtail.utils.format import percent, pluralize, unit_of

MAX_WHISKERS = 40
"""Classes up to which the chart shows each one's confidence interval"""


def class_chart(evaluation: Evaluation, class_names: Sequence[str], class_counts: Sequence[int]) -> Markup:
    """Accuracy of each class above its number of training images; the group means as lines."""
    counts, shots = np.asarray(class_counts), np.asarray(evaluation.shots)
    classes = [k for k in np.argsort(-counts, kind="stable").tolist() if evaluation.per_class[k] is not None]
    # A class without training images is left of those with one.
    axis = Axis("training images of the class", 0.7 * max(1, counts.min()), 1.3 * max(1, counts.max()), log=True)
    chart = Chart(
        "classes", "Accuracy of each class by its number of training images", axis, percent_axis("accuracy (%)")
    )
    accuracy = np.array([math.nan if value is None else value for value in evaluation.per_class])
    if len(classes) <= MAX_WHISKERS:
        totals = np.asarray(evaluation.test_counts)
        low, high = wilson_interval(np.rint(accuracy * totals), totals)
        for k in classes:
            chart.line([(counts[k], 100 * low[k]), (counts[k], 100 * high[k])], "whisker")
    positions = np.linspace(0, len(classes) - 1, min(len(classes), MAX_POINTS)).round().astype(int)
    shown = [classes[i] for i in np.unique(positions)]
    for shot in SHOTS:
        members = [k for k in shown if shots[k] == shot]
        titles = [f"{clean(class_names[k])}: {percent(accuracy[k])} %, {counts[k]:,} training images" for k in members]
        points = [(float(counts[k]), 100 * float(accuracy[k])) for k in members]
        chart.dots(points, shot, titles, 4.5 if len(classes) <= 200 else 2.5)
        mean, everyone = getattr(evaluation, shot), counts[shots == shot]
        if mean is not None:
            chart.line([(float(everyone.max()), 100 * mean), (float(everyone.min()), 100 * mean)], "mean")
    return chart.render()


def calibration_charts(evaluation: Evaluation, outputs: ImageOutputs) -> list[tuple[str, Markup]]:
    """Reliability diagrams with their captions: at temperature 1 and, if it is another one, at the model's."""
    if evaluation.calibration is None or not bool(outputs.uncalibrated.isfinite().all()):
        return []
    bins = len(evaluation.calibration.counts)
    correct = outputs.predictions == outputs.labels
    if evaluation.temperature == 1:
        return [("Confidence and accuracy", _reliability("calibration", evaluation.calibration))]
    before = calibration(outputs.uncalibrated, correct, bins)
    return [
        (f"Before: calibration error {percent(evaluation.uncalibrated_ece)} %", _reliability("before", before)),
        (f"After: calibration error {percent(evaluation.ece)} %", _reliability("after", evaluation.calibration)),
    ]


def _reliability(name: str, binned: Calibration) -> Markup:
    axes = (Axis("confidence (%)", 0, 100), Axis("accuracy (%)", 0, 100))
    chart = Chart(name, "Accuracy of images by confidence", *axes)
    width = 100 / len(binned.counts)
    for k, (count, confidence, accuracy) in enumerate(zip(*(values.tolist() for values in binned), strict=True)):
        if count:
            title = f"{count:,.0f} images: confidence {percent(confidence)} %, accuracy {percent(accuracy)} %"
            left, right = (k + 0.06) * width, (k + 0.94) * width
            chart.bar(left, right, 0, 100 * accuracy, "accuracy", title)
            low, high = sorted((100 * accuracy, 100 * confidence))
            chart.bar(left, right, low, high, "gap", title)
    chart.line([(0, 0), (100, 100)], "dashed")
    return chart.render()


def history_charts(history: Sequence[dict[str, Any]]) -> list[tuple[str, Markup]]:
    """Training curves with their captions."""

    def points(key: str, factor: float = 1) -> list[tuple[float, float]]:
        found = [(entry["epoch"], factor * entry[key]) for entry in history if entry.get(key) is not None]
        return [(epoch, value) for epoch, value in found if math.isfinite(value)]

    if not history:
        return []
    last = max(entry["epoch"] for entry in history)
    epochs = Axis("epoch", min(1, last - 1), last)
    charts = []
    loss = points("loss")
    if loss:
        chart = Chart("loss", "Training loss by epoch", epochs, axis_around("mean loss", [value for _, value in loss]))
        _curve(chart, loss, "strong")
        charts.append(("Training loss", chart.render()))
    names = {"val_balanced": "validation, balanced", "val_accuracy": "validation", "accuracy": "training"}
    lines = [(name, line) for key, name in names.items() if (line := points(key, 100))]
    if lines:
        chart = Chart("accuracy", "Accuracy by epoch", epochs, percent_axis("accuracy (%)"))
        shown = []
        for (name, line), (kind, look) in zip(lines, LINE_KINDS.items(), strict=False):
            _curve(chart, line, kind)
            shown.append(f"{name} ({look})" if len(lines) > 1 else name)
        charts.append((f"Accuracy: {', '.join(shown)}", chart.render()))
    return charts


LINE_KINDS = {"strong": "solid", "medium": "dashed", "weak": "dotted"}


def _curve(chart: Chart, points: Sequence[tuple[float, float]], kind: str) -> None:
    chart.line(points, kind)
    if 0 < len(points) <= 20:
        chart.dots(points, kind, [f"epoch {epoch:g}: {value:.4g}" for epoch, value in points], 2.5)


def routing_chart(routing: RoutingReport) -> Chart:
    """Balanced accuracy by cost: of the router at all thresholds, random routing, the oracle, and without a router."""
    unit, size = unit_of(routing.curve[0].cost)
    costs = [point.cost / size for point in routing.curve] + [point.cost / size for point in routing.prefixes]
    heights = [point.balanced for point in routing.curve] + [point.balanced for point in routing.prefixes]
    x = axis_around(f"multiply-accumulates per image ({unit})", costs)
    # The oracle may be far above the rest: the axis has a third of its height for it. Names are below the dots.
    spread = max(heights) - min(heights)
    top = min(max(heights) + 0.5 * spread, max(point.accuracy for point in routing.oracle_curve))
    y = percent_axis("balanced accuracy (%)", [*heights, top, max(0.0, min(heights) - 0.12 * spread)])
    chart = Chart("routing", "Balanced accuracy of routing by cost", x, y)

    def scaled(points: Sequence[Any], key: str) -> list[tuple[float, float]]:
        return [(point.cost / size, 100 * getattr(point, key)) for point in points]

    oracle = [point for point in scaled(thinned(routing.oracle_curve, 200), "accuracy") if point[1] <= y.high]
    chart.line(oracle, "dashed")
    chart.line(scaled(routing.random_curve, "accuracy"), "dotted")
    chart.line(scaled(routing.curve, "balanced"), "strong")
    prefixes = scaled(routing.prefixes, "balanced")
    chart.dots(prefixes, "few", [f"{pluralize(k, 'expert')}, no router" for k in range(1, len(prefixes) + 1)], 4)
    for number, point in enumerate(prefixes, start=1):
        chart.text(point, "1 expert" if number == 1 else str(number), dy=18)
    return chart
