"""Plots of a run for its report: each function writes a PNG file. Matplotlib without pyplot and global state."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longtail.data.imbalance import SHOTS
from longtail.evaluation.metrics import Evaluation
from longtail.evaluation.routing import RoutingReport
from longtail.utils.format import percent, pluralize, unit_of

# The colours of Okabe and Ito, which differ for every kind of colour vision.
BLUE, GREEN, VERMILLION, PURPLE, SKY = "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
SHOT_COLORS = {"many": BLUE, "medium": GREEN, "few": VERMILLION}
INK, GREY, PALE, PALE_RED = "#333333", "#8c8c8c", "#d9d9d9", "#F2B896"
LEGEND: dict[str, Any] = {"fontsize": 8, "frameon": False, "labelcolor": INK, "handlelength": 1.2, "columnspacing": 1.4}

MAX_NAMES = 20
"""Class names that fit along an axis"""

MAX_CELLS = 200
"""Rows of a confusion matrix that are distinguishable"""


def plot_classes(path: Path, evaluation: Evaluation, class_names: Sequence[str], class_counts: Sequence[int]) -> None:
    """Accuracy of each class above its number of training images, from the most common class to the rarest."""
    order = np.argsort(-np.asarray(class_counts), kind="stable")
    ranks = np.arange(1, len(order) + 1)
    counts = np.asarray(class_counts)[order]
    accuracy = np.array([np.nan if a is None else 100 * a for a in evaluation.per_class])[order]
    shots = np.asarray(evaluation.shots)[order]
    is_crowded = len(order) > 40
    floor = 0.7 * max(1, counts.min())  # start of the logarithmic axis

    figure, (top, bottom) = _figure(7.2, 4.8, rows=2, sharex=True, height_ratios=(2.2, 1))
    for shot in SHOTS:
        members, color, mean = ranks[shots == shot], SHOT_COLORS[shot], getattr(evaluation, shot)
        if len(members) == 0:
            continue
        # One outline instead of thousands of bars.
        edges = np.append(members, members[-1] + 1) - 0.5
        label = f"{shot}, {pluralize(len(members), 'class', 'classes')}: {percent(mean)}"
        bottom.stairs(counts[members - 1], edges, baseline=floor, fill=True, color=color, label=label)
        dots = {"s": np.clip(1500 / len(order), 5, 40), "alpha": 0.45 if is_crowded else 1, "linewidths": 0}
        top.scatter(members, accuracy[members - 1], color=color, zorder=3, clip_on=False, **dots)
        if mean is not None:
            # The white edge keeps the mean readable in front of many points. A few points are in front of the mean.
            line = {"y": 100 * mean, "xmin": members[0] - 0.5, "xmax": members[-1] + 0.5}
            for line_color, width in (("white", 4), (color, 2)):
                top.hlines(**line, color=line_color, linewidth=width, zorder=4 if is_crowded else 2)
    if is_crowded:
        mean_line = _running_mean(accuracy, len(order) // 8)
        top.plot(ranks, mean_line, color=INK, linewidth=1, zorder=5, label="running mean")
    else:
        top.vlines(ranks, 0, accuracy, color=PALE, linewidth=1.2, zorder=1)
    top.set_ylim(0, 100)
    top.set_xlim(0.5, len(order) + 0.5)
    _label(top, "Accuracy of each class, from the most common to the rarest", "", "accuracy (%)")
    bottom.set_yscale("log")
    bottom.set_ylim(floor, 1.4 * max(1, counts.max()))
    bottom.yaxis.set_major_formatter("{x:,.0f}")
    _label(bottom, "", "class, most common first", "training images")
    if len(order) <= MAX_NAMES:
        _name_ticks(bottom.xaxis, [class_names[k] for k in order], rotation=35)
    _save(figure, path, legend_columns=4)


def plot_history(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """Loss, accuracy and learning rate over the epochs."""
    figure, (loss, accuracy, rate) = _figure(9.6, 2.9, columns=3)
    for axes, key, color, label, factor in (
        (loss, "loss", BLUE, "training", 1),
        (accuracy, "accuracy", BLUE, "training", 100),
        (accuracy, "val_accuracy", VERMILLION, "validation", 100),
        (accuracy, "val_balanced", PURPLE, "validation, balanced", 100),
        (rate, "learning_rate", INK, "learning rate", 1),
    ):
        points = [(entry["epoch"], factor * entry[key]) for entry in history if entry.get(key) is not None]
        if points:
            marker = "o" if len(points) <= 20 else ""
            axes.plot(*zip(*points, strict=True), color=color, label=label, marker=marker, markersize=3, linewidth=1.5)
    _label(loss, "Loss", "epoch", "mean loss")
    _label(accuracy, "Accuracy", "epoch", "accuracy (%)")
    _label(rate, "Learning rate", "epoch", "learning rate")
    accuracy.set_ylim(0, 100)
    if len(accuracy.lines) > 1:
        accuracy.legend(**LEGEND)
    rates = [entry["learning_rate"] for entry in history if entry.get("learning_rate")]
    if rates and max(rates) > 20 * min(rates):
        rate.set_yscale("log")
    else:
        rate.set_ylim(bottom=0)
    for axes in (loss, accuracy, rate):
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    _save(figure, path)


def plot_calibration(path: Path, evaluation: Evaluation) -> None:
    """Reliability diagram above a histogram of the confidence. ``evaluation.calibration`` must not be None."""
    binned = evaluation.calibration
    assert binned is not None
    counts, confidence, accuracy = (values.numpy() for values in binned)
    filled = counts > 0
    width = 1 / len(counts)
    centers = (np.arange(len(counts)) + 0.5) * width

    figure, (top, bottom) = _figure(4.6, 5.6, rows=2, sharex=True, height_ratios=(3.2, 1))

    def bars(axes: Any, bins: Any, low: Any, high: Any, color: str, label: str) -> None:
        if bins.any():
            heights = 100 * (high - low)[bins]
            axes.bar(100 * centers[bins], heights, 92 * width, 100 * low[bins], color=color, label=label)

    zero = np.zeros_like(accuracy)
    bars(top, filled, zero, accuracy, BLUE, "accuracy")
    # The calibration error is the mean of these gaps.
    bars(top, filled & (confidence > accuracy), accuracy, confidence, PALE_RED, "overconfident")
    bars(top, filled & (confidence < accuracy), confidence, accuracy, SKY, "underconfident")
    top.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="perfectly calibrated")
    top.set_xlim(0, 100)
    top.set_ylim(0, 100)
    mean = float((counts * confidence).sum() / counts.sum())
    means = f"mean confidence {percent(mean)} %, accuracy {percent(evaluation.accuracy)} %"
    _label(top, f"Calibration error {percent(binned.error)} %\n{means}", "", "accuracy (%)")
    bars(bottom, filled, zero, counts / counts.sum(), GREY, "")
    _label(bottom, "", "confidence: probability of the predicted class (%)", "images (%)")
    _save(figure, path, legend_columns=2)


def plot_confusion(path: Path, evaluation: Evaluation, class_names: Sequence[str], class_counts: Sequence[int]) -> None:
    """Confusion matrix with classes from the most common to the rarest. Rows sum to 100 %."""
    from matplotlib.colors import PowerNorm

    num_classes = len(class_counts)
    cells = min(num_classes, MAX_CELLS)
    order = np.argsort(-np.asarray(class_counts), kind="stable")
    cell_of = np.empty(num_classes, dtype=np.int64)
    cell_of[order] = np.arange(num_classes) * cells // num_classes
    true, predicted = np.nonzero(evaluation.confusion)
    images = np.zeros((cells, cells))
    np.add.at(images, (cell_of[true], cell_of[predicted]), evaluation.confusion[true, predicted])
    totals = images.sum(axis=1, keepdims=True)
    share = np.where(totals > 0, 100 * images / np.maximum(totals, 1), np.nan)

    figure, (axes,) = _figure(6.2, 5.4)
    ends = (0.5, num_classes + 0.5)
    # The square root makes rare confusions visible beside the diagonal.
    norm = PowerNorm(0.5, 0, 100)
    image = axes.imshow(share, cmap="Blues", norm=norm, interpolation="nearest", extent=(*ends, *reversed(ends)))
    axes.set_facecolor(PALE)  # rows without test images
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.06, ticks=[0, 1, 5, 10, 25, 50, 100])
    bar.set_label("fraction of the true class (%)", fontsize=8, color=INK)
    bar.ax.tick_params(labelsize=7, color=GREY, labelcolor=INK)
    bar.outline.set_visible(False)
    title = "Confusion matrix"
    if cells < num_classes:
        title += f" (a cell holds about {num_classes / cells:.0f} of {num_classes:,} classes)"
    _label(axes, title, "predicted class, most common first", "true class, most common first")
    axes.grid(False)
    shots = np.asarray(evaluation.shots)[order]
    for shot in SHOTS:
        members = np.flatnonzero(shots == shot) + 1
        if len(members) >= 0.06 * num_classes:  # its name fits
            style = {"va": "center", "rotation": 270, "fontsize": 8, "color": SHOT_COLORS[shot]}
            axes.text(1.01, members.mean(), shot, transform=axes.get_yaxis_transform(), **style)
        if len(members) > 0 and members[-1] < num_classes:  # line between two groups
            axes.axhline(members[-1] + 0.5, color=INK, linewidth=0.6, linestyle=":")
            axes.axvline(members[-1] + 0.5, color=INK, linewidth=0.6, linestyle=":")
    if num_classes <= MAX_NAMES:
        names = [class_names[k] for k in order]
        _name_ticks(axes.xaxis, names, rotation=35)
        _name_ticks(axes.yaxis, names)
        for row, column in np.argwhere(share >= 1):
            style = {
                "ha": "center",
                "va": "center",
                "fontsize": 6,
                "color": "white" if share[row, column] > 35 else INK,
            }
            axes.text(column + 1, row + 1, f"{share[row, column]:.0f}", **style)
    _save(figure, path)


def plot_experts(path: Path, evaluation: Evaluation) -> None:
    """Accuracy of each expert beside the ensemble: overall, many, medium and few."""
    rows = {f"expert {e}": scores for e, scores in enumerate(evaluation.experts, start=1)}
    groups = {"overall": "accuracy", "many-shot": "many", "medium-shot": "medium", "few-shot": "few"}
    figure, (axes,) = _figure(7.2, 3.2)
    width = 0.8 / (len(rows) + 1)
    for position, (label, scores) in enumerate([*rows.items(), ("ensemble", evaluation)]):
        is_ensemble = label == "ensemble"
        values = [getattr(scores, key) for key in groups.values()]
        x = np.arange(len(groups)) + (position - len(rows) / 2) * width
        color = BLUE if is_ensemble else str(0.85 - 0.4 * position / max(len(rows) - 1, 1))
        bars = axes.bar(x, [100 * (value or 0) for value in values], width=0.92 * width, color=color, label=label)
        if is_ensemble or len(rows) <= 4:  # the numbers fit
            weight = "bold" if is_ensemble else "normal"
            axes.bar_label(bars, list(map(percent, values)), padding=2, fontsize=6.5, color=INK, fontweight=weight)
    axes.set_xticks(range(len(groups)), list(groups))
    axes.set_ylim(0, 107)
    axes.set_yticks(range(0, 101, 20))
    _label(axes, "Accuracy of the experts and of the ensemble", "", "accuracy (%)")
    axes.tick_params(axis="x", length=0)
    _save(figure, path, legend_columns=min(len(rows) + 1, 8))


def plot_tradeoff(path: Path, report: RoutingReport) -> None:
    """Balanced accuracy by cost: of the router at every threshold, of random routing and of the oracle."""
    one_expert = report.curve[0].cost
    unit, size = unit_of(one_expert)
    figure, (axes,) = _figure(7.2, 4.4)

    def draw(points: Sequence[tuple[float, float]], **style: Any) -> None:
        axes.plot(*zip(*((cost / size, 100 * accuracy) for cost, accuracy in points), strict=True), **style)

    draw(report.oracle_curve, color=GREY, linewidth=1, linestyle="--", label="oracle (knows the labels)")
    draw([(point.cost, point.balanced) for point in report.curve], color=BLUE, linewidth=1.8, label="router")
    draw(report.random_curve, color=GREY, linewidth=1, linestyle=":", label="random routing")
    prefixes = [(prefix.cost, prefix.balanced) for prefix in report.prefixes]
    draw(prefixes, color=INK, marker="o", markersize=5, linestyle="", label="no router", zorder=3)
    for number, (cost, accuracy) in enumerate(prefixes, start=1):
        name = "1 expert" if number == 1 else str(number)
        style = {"xytext": (0, -7), "textcoords": "offset points", "ha": "center", "va": "top"}
        axes.annotate(name, (cost / size, 100 * accuracy), **style, fontsize=7.5, color=INK)
    marker = {"marker": "D", "markersize": 7, "markeredgecolor": "white", "linestyle": "", "zorder": 4}
    label = f"threshold {report.threshold:.3g}"
    draw([(report.cost, report.balanced)], color=VERMILLION, label=label, **marker)

    axes.margins(x=0.06, y=0.09)
    _label(axes, "Accuracy and cost of routing", f"multiply-accumulates per image ({unit})", "balanced accuracy (%)")
    relative = size / one_expert
    top = axes.secondary_xaxis("top", functions=(lambda x: x * relative, lambda x: x / relative))
    top.set_xlabel("relative to the first expert", fontsize=8, color=INK)
    top.tick_params(labelsize=8, color=GREY, labelcolor=INK)
    top.spines["top"].set_visible(False)
    _save(figure, path, legend_columns=5)


def _figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, Any]:
    """Returns a figure of this size in inches, and its axes as a flat array."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def _label(axes: Any, title: str, x: str, y: str) -> None:
    """Sets title, labels and the common style of axes."""
    axes.set_title(title, fontsize=10, loc="left", color=INK)
    axes.set_xlabel(x, fontsize=8, color=INK)
    axes.set_ylabel(y, fontsize=8, color=INK)
    axes.tick_params(which="both", labelsize=8, color=GREY, labelcolor=INK)
    axes.grid(True, axis="y", color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)


def _name_ticks(axis: Any, names: Sequence[str], rotation: float = 0) -> None:
    """Names the positions 1, 2, ... of an axis."""
    # Names of folders may hold bytes that are not text.
    texts = [" ".join(name.encode(errors="replace").decode().split()) for name in names]
    short = [text if len(text) <= 18 else text[:17] + "…" for text in texts]
    rotated = {"rotation": rotation, "ha": "right", "rotation_mode": "anchor"} if rotation else {}
    axis.set_ticks(range(1, len(names) + 1), short, parse_math=False, fontsize=7, **rotated)  # "$" is not a formula


def _running_mean(values: Any, window: int) -> Any:
    """Mean over ``window`` neighbours, fewer at the ends, without nan."""
    kernel = np.ones(window)
    number = np.convolve(np.isfinite(values), kernel, mode="same")
    total = np.convolve(np.nan_to_num(values), kernel, mode="same")
    return np.where(number > 0, total / np.maximum(number, 1), math.nan)


def _save(figure: Any, path: Path, legend_columns: int = 0) -> None:
    if legend_columns:
        figure.legend(loc="outside lower center", ncols=legend_columns, **LEGEND)
    with warnings.catch_warnings():
        # Matplotlib's font lacks some scripts. Their letters show as boxes; one warning for each would be too many.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, dpi=150)
