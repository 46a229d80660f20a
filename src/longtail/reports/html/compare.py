"""The comparison of several runs as one HTML file."""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from longtail.data.imbalance import SHOTS
from longtail.evaluation.image_outputs import ImageOutputs
from longtail.evaluation.significance import difference_interval, holm, mcnemar
from longtail.reports.html.classes import MAX_CLASSES
from longtail.reports.html.render import render
from longtail.reports.html.svg import Chart, axis_around, percent_axis
from longtail.reports.html.text import accuracy_interval, clean, p_value, points
from longtail.reports.page import RunReport
from longtail.reports.tables import ACCURACIES, ReportTable, accuracies
from longtail.utils.errors import InputError
from longtail.utils.files import write_atomically
from longtail.utils.format import macs, percent, rate, unit_of

SIGNIFICANT = 0.05
"""A difference is called significant if its adjusted p-value is below this"""


class ComparedRun(NamedTuple):
    """A run of a comparison."""

    folder: Path
    report: RunReport
    outputs: ImageOutputs

    @property
    def correct(self) -> Tensor:
        """Whether the prediction for each test image is correct, (N,)."""
        return self.outputs.predictions == self.outputs.labels

    @property
    def rate(self) -> float | None:
        """Images per second with all experts."""
        speed = self.report.routing.images_per_second if self.report.routing else self.report.speed
        return None if speed is None else speed.prefixes[-1]


class Difference(NamedTuple):
    """The difference between two runs on the same test images."""

    first: int
    second: int
    """Positions of the runs"""
    only_first: int
    """Images that the first run alone classifies correctly"""
    only_second: int
    p: float
    """Of McNemar's exact test"""
    adjusted: float
    """The same, adjusted for the number of pairs of runs"""


def differences(correct: Sequence[Tensor]) -> list[Difference]:
    """Returns the difference of each pair of runs, from whether their predictions are correct: (N,) each."""
    pairs = list(combinations(range(len(correct)), 2))
    only = [(int((correct[i] & ~correct[j]).sum()), int((~correct[i] & correct[j]).sum())) for i, j in pairs]
    p_values = [float(mcnemar(*counts)) for counts in only]
    rows = zip(pairs, only, p_values, holm(p_values).tolist(), strict=True)
    return [Difference(*pair, *counts, p, adjusted) for pair, counts, p, adjusted in rows]


def class_differences(
    correct: Sequence[Tensor], labels: Tensor, num_classes: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns for each class how much more accurate the other R - 1 runs are than the first, and adjusted p-values.

    Args:
        correct: of each of R runs, whether its predictions are correct, (N,) each.
        labels: (N,).
        num_classes: C.

    Returns:
        Differences of the accuracies and p-values of McNemar's exact test, adjusted for all classes and runs:
        (R - 1, C) each; nan for classes without test images.
    """

    def count(mask: Tensor) -> NDArray[np.int64]:
        return torch.bincount(labels[mask], minlength=num_classes).numpy()

    totals = torch.bincount(labels, minlength=num_classes).numpy()
    gained = np.stack([count(~correct[0] & other) for other in correct[1:]])
    lost = np.stack([count(correct[0] & ~other) for other in correct[1:]])
    has_images = np.broadcast_to(totals > 0, gained.shape)
    difference = np.divide(gained - lost, totals, out=np.full(gained.shape, np.nan), where=has_images)
    adjusted = np.full(gained.shape, np.nan)
    adjusted[has_images] = holm(mcnemar(gained, lost)[has_images])
    return difference, adjusted


def check_comparable(runs: Sequence[ComparedRun]) -> None:
    """Checks that all runs were tested on the same images.

    Raises:
        InputError: they were not.
    """
    first = runs[0]
    for other in runs[1:]:
        same_images = first.outputs.test_images == other.outputs.test_images
        if not same_images or list(first.report.class_names) != list(other.report.class_names):
            numbers = [f"{len(run.outputs.labels):,} of '{run.report.config.data.name}'" for run in (first, other)]
            raise InputError(
                f"'{first.folder}' and '{other.folder}' have different test images ({numbers[0]}, {numbers[1]}); "
                "compare needs runs with the same ones"
            )


def write_comparison(path: Path, runs: Sequence[ComparedRun]) -> None:
    """Writes the page.

    Args:
        path: of the file.
        runs: two or more, with the same test images.

    Raises:
        InputError: the file cannot be written.
    """
    correct = [run.correct for run in runs]
    names = _names(runs)
    pairs = differences(correct)
    content = {
        "names": names,
        "summary": _summary(runs, names, pairs),
        "results": _results_table(runs, names),
        "chart_svg": _chart(runs, names),
        "pairs": _pairs_table(pairs, names, len(correct[0])),
        "class_rows": list(_class_rows(runs, correct)),
        "num_classes": len(runs[0].report.class_names),
        "shots": SHOTS,
        "has_routing": any(run.report.routing is not None for run in runs),
    }
    write_atomically(path, render("compare.html.j2", **content))


def _names(runs: Sequence[ComparedRun]) -> list[str]:
    """Names of the runs: their folders, with as many parents as tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    length = next((n for n in range(1, 9) if len({part[-n:] for part in parts}) == len(runs)), 8)
    return [clean("/".join(part[-length:])) for part in parts]


def _summary(runs: Sequence[ComparedRun], names: Sequence[str], pairs: Sequence[Difference]) -> dict[str, str | bool]:
    """The best run and the next one."""
    order = sorted(range(len(runs)), key=lambda k: -runs[k].report.evaluation.accuracy)
    best, second = order[:2]
    found = next(pair for pair in pairs if {pair.first, pair.second} == {best, second})
    counts = (found.only_first, found.only_second) if found.first == best else (found.only_second, found.only_first)
    num_images = len(runs[0].outputs.labels)
    p = p_value(found.adjusted)
    return {
        "best": names[best],
        "second": names[second],
        "best_accuracy": percent(runs[best].report.evaluation.accuracy),
        "second_accuracy": percent(runs[second].report.evaluation.accuracy),
        "images": f"{num_images:,}",
        "interval": " to ".join(map(points, difference_interval(*counts, num_images))),
        "difference": f"{100 * (counts[0] - counts[1]) / num_images:.1f}",
        "p": f"p {p}" if p.startswith("<") else f"p = {p}",
        "is_tie": counts[0] == counts[1],
        "is_significant": found.adjusted < SIGNIFICANT,
    }


def _results_table(runs: Sequence[ComparedRun], names: Sequence[str]) -> ReportTable:
    header = ["run", *ACCURACIES, "95 % interval, overall", "ECE", "MACs", "images/s"]
    rows = []
    for number, (run, name) in enumerate(zip(runs, names, strict=True), start=1):
        evaluation, routing = run.report.evaluation, run.report.routing
        cost = "n/a" if run.report.cost is None else macs(run.report.cost.total)
        numbers = [accuracy_interval(evaluation.accuracy, evaluation.num_images), percent(evaluation.ece)]
        numbers += [cost, rate(run.rate)]
        rows.append([f"{number}  {name}", *accuracies(evaluation), *numbers])
        if routing is not None:
            numbers = [accuracy_interval(routing.accuracy, evaluation.num_images), percent(routing.ece)]
            speed = routing.images_per_second
            numbers += [macs(routing.cost), rate(None if speed is None else speed.routed)]
            label = f"{number}  routed, {routing.mean_experts:.2f} experts"
            rows.append([label, *accuracies(routing), *numbers])
    return ReportTable(header, rows)


def _chart(runs: Sequence[ComparedRun], names: Sequence[str]) -> Markup:
    """Balanced accuracy by cost: each run with all experts, and the curves of the routed ones."""
    costed = [(k, run, run.report.cost) for k, run in enumerate(runs) if run.report.cost is not None]
    if not costed:
        return Markup()
    unit, size = unit_of(min(cost.prefix(1) for _, _, cost in costed))
    curves = [(run.report.routing.curve if run.report.routing else []) for _, run, _ in costed]
    everything = [(point.cost, point.balanced) for curve in curves for point in curve]
    everything += [(cost.total, run.report.evaluation.balanced) for _, run, cost in costed]
    heights = [height for _, height in everything]
    room = max(heights) + 0.1 * (max(heights) - min(heights))
    x = axis_around(f"multiply-accumulates per image ({unit})", [cost / size for cost, _ in everything])
    chart = Chart("cost", "Balanced accuracy by cost", x, percent_axis("balanced accuracy (%)", [*heights, room]))
    for curve in curves:
        chart.line([(point.cost / size, 100 * point.balanced) for point in curve], "strong")
    for k, run, cost in costed:
        evaluation, routing = run.report.evaluation, run.report.routing
        position = (cost.total / size, 100 * evaluation.balanced)
        title = f"{names[k]}: {percent(evaluation.balanced)} %, {macs(cost.total)} multiply-accumulates"
        chart.dots([position], "few", [title], 5)
        chart.text(position, str(k + 1), dy=-11)
        if routing is not None:
            title = f"{names[k]}, routed: {percent(routing.balanced)} %, {macs(routing.cost)} multiply-accumulates"
            routed = (routing.cost / size, 100 * routing.balanced)
            chart.dots([routed], "many", [title], 5)
            chart.text(routed, str(k + 1), dy=-11)
    return chart.render()


def _pairs_table(pairs: Sequence[Difference], names: Sequence[str], num_images: int) -> ReportTable:
    rows = [
        [
            f"{pair.first + 1}  {names[pair.first]}",
            f"{pair.second + 1}  {names[pair.second]}",
            f"{pair.only_first:,}",
            f"{pair.only_second:,}",
            points((pair.only_first - pair.only_second) / num_images),
            " to ".join(map(points, difference_interval(pair.only_first, pair.only_second, num_images))),
            p_value(pair.p),
            p_value(pair.adjusted),
            "yes" if pair.adjusted < SIGNIFICANT else "no",
        ]
        for pair in pairs
    ]
    header = ["first", "second", "only first correct", "only second correct", "first − second", "95 % interval"]
    return ReportTable([*header, "p", "p, adjusted", "significant"], rows, text_columns=2)


def _class_rows(runs: Sequence[ComparedRun], correct: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    report = runs[0].report
    counts, evaluation = report.class_counts, report.evaluation
    difference, adjusted = class_differences(correct, runs[0].outputs.labels, len(counts))
    for k in sorted(range(len(counts)), key=lambda k: -counts[k])[:MAX_CLASSES]:
        others = zip(difference[:, k].tolist(), adjusted[:, k].tolist(), strict=True)
        is_tested = evaluation.test_counts[k] > 0
        yield {
            "name": clean(report.class_names[k]),
            "shot": evaluation.shots[k],
            "trained": f"{counts[k]:,}",
            "tested": f"{evaluation.test_counts[k]:,}",
            "accuracy": percent(evaluation.per_class[k]),
            "others": [
                (points(value), p_value(p), p < SIGNIFICANT) if is_tested else ("n/a", "n/a", False)
                for value, p in others
            ],
        }
