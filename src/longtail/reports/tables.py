"""Tables of results: one class that the terminal and Markdown files share, and the table of each kind of result."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from longtail.data.imbalance import SHOTS, ShotThresholds
from longtail.evaluation.label_shift.evaluators import LabelShiftReport
from longtail.evaluation.metrics import Evaluation, Scores
from longtail.evaluation.routing import RoutingReport
from longtail.evaluation.throughput import Speed
from longtail.utils.format import escape, macs, percent, pluralize, rate

ACCURACIES = ("overall", "balanced", *SHOTS)
"""Columns of `accuracies`"""


@dataclass(frozen=True)
class ReportTable:
    """A table of texts. ``console.show(table)`` prints it; `markdown` returns its Markdown."""

    header: Sequence[str]

    rows: Sequence[Sequence[str]]

    title: str = ""
    """Above the table in the terminal"""

    notes: Sequence[str] = ()
    """One line each, below the table in the terminal"""

    text_columns: int = 1
    """The first columns hold text, which is aligned left; numbers are aligned right"""

    bold_row: int | None = None
    """The most important row, from 0"""

    sections: Sequence[int] = ()
    """Rows, from 0, above which the terminal shows a line"""

    def __rich__(self) -> Table:
        """The table for the terminal."""
        table = Table(
            title=Text(self.title, style="table.title") if self.title else None,
            caption=Text("\n".join(self.notes), style="table.caption") if self.notes else None,
            box=box.SIMPLE_HEAD,
            title_justify="left",
            caption_justify="left",
            collapse_padding=True,
            pad_edge=False,
        )
        for position, name in enumerate(self.header):
            if position < self.text_columns:
                table.add_column(name, vertical="bottom")
            else:  # "expert 1" takes two lines, so that nine columns fit into 80 characters
                table.add_column(name.replace(" ", "\n"), justify="right", vertical="bottom")
        for position, row in enumerate(self.rows):
            if position in self.sections:
                table.add_section()
            table.add_row(*map(Text, row), style="bold" if position == self.bold_row else "")
        return table

    def markdown(self) -> str:
        """Returns the header and the rows, without title and notes. Text columns are escaped."""
        texts = self.text_columns
        lines = [
            [*map(escape, self.header[:texts]), *self.header[texts:]],
            ["---"] * texts + ["---:"] * (len(self.header) - texts),
            *([*map(escape, row[:texts]), *row[texts:]] for row in self.rows),
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracies(scores: Scores) -> list[str]:
    """Returns the accuracies in percent: overall, balanced, many, medium, few."""
    return [percent(value) for value in (scores.accuracy, scores.balanced, scores.many, scores.medium, scores.few)]


def class_size(shot: str, thresholds: ShotThresholds) -> str:
    """Returns the limits of a shot group in words, such as "20 to 100"."""
    many_above, few_below = thresholds
    medium = f"{few_below} to {many_above}" if few_below <= many_above else "none"
    return {"many": f"over {many_above}", "medium": medium, "few": f"under {few_below}"}[shot]


def accuracy_table(evaluation: Evaluation, title: str = "") -> ReportTable:
    """Accuracies of the ensemble and of each expert."""
    has_ensemble = len(evaluation.experts) > 1
    rows = [["ensemble" if has_ensemble else "model", *accuracies(evaluation)]]
    notes = ["Balanced: mean over classes."]
    if has_ensemble:
        rows += [[f"expert {e}", *accuracies(scores)] for e, scores in enumerate(evaluation.experts, start=1)]
        if evaluation.average == "probabilities":
            notes.append("Ensemble: mean of the experts' probabilities, not of their logits.")
    for shot in SHOTS:
        classes = pluralize(evaluation.shots.count(shot), "class", "classes")
        notes.append(f"{shot}: {classes} with {class_size(shot, evaluation.thresholds)} training images")
    if evaluation.top5 is not None:
        notes.append(f"Top-5 accuracy: {percent(evaluation.top5)} %")
    if evaluation.ece is not None:
        notes.append(f"Calibration error (ECE): {percent(evaluation.ece)} %")
        if evaluation.temperature != 1:
            notes.append(f"Without temperature scaling: {percent(evaluation.uncalibrated_ece)} %")
    if evaluation.disagreement is not None:
        notes.append(f"Two experts disagree on {percent(evaluation.disagreement)} % of the images")
    return ReportTable(("accuracy (%)", *ACCURACIES), rows, title, notes, bold_row=0)


def routing_table(report: RoutingReport, title: str = "") -> ReportTable:
    """Accuracies and costs of the first 1 to E experts and, in the last row, of routing."""
    views = f", {report.num_views} views" if report.num_views > 1 else ""
    names = [pluralize(number, "expert") for number in range(1, len(report.prefixes) + 1)]
    # The mean number of experts is part of the name: another column would not fit into a terminal.
    names.append(f"routed: {report.mean_experts:.2f}")
    header = ["experts", *ACCURACIES, "MACs", "cost"]
    rows = [
        [name, *accuracies(scores), macs(scores.cost), f"{scores.relative_cost:.2f}×"]
        for name, scores in zip(names, [*report.prefixes, report], strict=True)
    ]
    if speed := report.images_per_second:
        header.append("images/s")
        for row, number in zip(rows, (*speed.prefixes, speed.routed), strict=True):
            row.append(rate(number))
    notes = [
        f"Accuracy in %. MACs: multiply-accumulates per image{views}; cost: × one expert.",
        *routing_notes(report),
    ]
    return ReportTable(header, rows, title, notes, bold_row=len(rows) - 1)


def routing_notes(report: RoutingReport) -> list[str]:
    """Returns sentences about the number of experts that images use, in all and in each shot group."""
    shares = [f"{pluralize(used, 'expert')} {percent(share)} %" for used, share in enumerate(report.shares, start=1)]
    groups = [
        f"{shot} {'n/a' if found is None else ' / '.join(map(percent, found))}"
        for shot, found in report.shares_by_shot.items()
    ]
    by_shot = report.mean_experts_by_shot.items()
    means = [f"{shot} {'n/a' if mean is None else f'{mean:.2f}'}" for shot, mean in by_shot]
    return [
        f"Images by experts used: {', '.join(shares)}.",
        f"The same by shot group (%): {', '.join(groups)}.",
        f"Mean experts used by shot group: {', '.join(means)}.",
    ]


def speed_note(speed: Speed) -> str:
    """Returns a sentence with the images per second of the first 1 to E experts."""
    rates = [f"{pluralize(k, 'expert')} {rate(number)}" for k, number in enumerate(speed.prefixes, start=1)]
    return f"Images/s with batches of {speed.batch_size}: {', '.join(rates)}."


def label_shift_table(report: LabelShiftReport, title: str = "", *, with_weights: bool = False) -> ReportTable:
    """Accuracies on subsets with other class shares.

    Args:
        report: of the model.
        title: above the table in the terminal.
        with_weights: adds a column with the weights of the experts, which does not fit into a terminal.
    """
    has_ensemble = report.rows[0].weights is not None
    header = ["distribution", "images", "ensemble" if has_ensemble else "model", "adjusted"]
    notes = [
        "Accuracy in % on subsets of these images; every image has the same weight.",
        "Forward-50: the most common class of the training has 50 times as many images as the rarest; backward-50: the "
        "reverse; uniform: all classes have the same number.",
        "Adjusted: with logits adjusted to the class shares of the subset.",
    ]
    if has_ensemble:
        header += ["aggregated", *(f"expert {e}" for e, _ in enumerate(report.rows[0].experts, start=1))]
        notes.insert(2, f"Ensemble: mean of all experts' {report.average}.")
        notes.append("Aggregated: experts weighted by the stability of their predictions, without labels (SADE).")
        if report.alike:
            notes.append(
                "Aggregation is for experts that were trained for different class shares; these were trained for the "
                "same."
            )
    if report.approximation:
        notes.append(f"The adjustment is approximate: {report.approximation}.")
    if report.left_out:
        notes.append(f"Ratios {', '.join(map(str, report.left_out))} are left out: a class has too few images.")
    rows = []
    for row in report.rows:
        numbers = [row.mean, row.known_prior, *([row.aggregated, *row.experts] if has_ensemble else [])]
        rows.append([row.distribution, f"{row.num_images:,}", *map(percent, numbers)])
    if with_weights and has_ensemble:
        header.append("weights")
        for cells, row in zip(rows, report.rows, strict=True):
            cells.append(" ".join(f"{weight:.2f}" for weight in row.weights or ()))
        notes.append("Weights: of expert 1, 2, ... in the aggregation.")
    return ReportTable(header, rows, title, notes)
