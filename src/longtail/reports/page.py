"""The report of a run, report.md: tables, plots and explanations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from longtail.config.recipes import to_yaml
from longtail.config.schema import Config
from longtail.data.imbalance import SHOTS
from longtail.data.views import NUM_VIEWS
from longtail.evaluation.flops import Cost
from longtail.evaluation.metrics import Evaluation
from longtail.evaluation.routing import RoutingReport
from longtail.evaluation.throughput import Speed
from longtail.reports import plots
from longtail.reports.tables import (
    ACCURACIES,
    ReportTable,
    accuracies,
    accuracy_table,
    class_size,
    routing_notes,
    routing_table,
    speed_note,
)
from longtail.utils.format import duration, escape, percent, pluralize, rarest


@dataclass(frozen=True)
class RunReport:
    """The content of a report."""

    config: Config

    evaluations: Mapping[str, Evaluation]
    """By split, with "test"; plots and details are of the test images"""

    class_names: Sequence[str]
    """C names"""

    class_counts: Sequence[int]
    """Training images of each class, C numbers"""

    history: Sequence[dict[str, Any]] = ()
    """One record per epoch: epoch, loss, accuracy, learning_rate, seconds, and optionally val_accuracy, val_balanced"""

    environment: Mapping[str, Any] = field(default_factory=dict)
    """Versions and hardware"""

    routing: RoutingReport | None = None
    """Of the test images; None for a model without a router"""

    speed: Speed | None = None
    """Of a model without a router"""

    predictions: str | None = None
    """Name of the file with the prediction for each test image, if any"""

    cost: Cost | None = None
    """For one image, counting all its views"""

    @property
    def evaluation(self) -> Evaluation:
        """The evaluation of the test images."""
        return self.evaluations["test"]

    @property
    def epochs_and_time(self) -> str:
        """Of the training: "4 epochs in 12 min"; or "3 of 4 epochs in 12 min (out of time)"."""
        done, planned = len(self.history), self.config.training.epochs
        epochs = pluralize(done, "epoch") if done >= planned else f"{done} of {pluralize(planned, 'epoch')}"
        reason = {"time": " (out of time)", "validation": " (stopped early)"}.get(
            str(self.history[-1].get("ended")), ""
        )
        return f"{epochs} in {duration(sum(record.get('seconds') or 0 for record in self.history))}{reason}"


def write_report(folder: Path, report: RunReport) -> None:
    """Writes ``report.md`` and ``plots/*.png`` into a run folder."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    sections = [
        f"# {escape(report.config.name)}",
        _introduction(report),
        "## Results",
        *_results(report.evaluations),
        *([] if report.speed is None else [speed_note(report.speed)]),
        "## Accuracy by class size",
        *_class_sizes(report),
        *expert_sections(report.evaluation),
        *(_routing(folder, report.routing) if report.routing else []),
        "## Plots",
        *_plots(folder, report),
        "## Most common errors",
        *_errors(report),
        "## Settings",
        f"```yaml\n{to_yaml(report.config).rstrip()}\n```",
        "## Environment",
        "\n".join(f"- {escape(key)}: {escape(plain(value), 1000)}" for key, value in report.environment.items()),
    ]
    # Names of folders may hold bytes that are not text.
    (folder / "report.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8", errors="replace")


def write_label_shift(folder: Path, table: ReportTable) -> None:
    """Writes ``label_shift.md`` into a run folder."""
    notes = "\n".join(f"- {note}" for note in table.notes)
    text = f"# {escape(table.title)}\n\n{table.markdown()}\n\n{notes}\n"
    (folder / "label_shift.md").write_text(text, encoding="utf-8", errors="replace")


def plain(value: Any) -> str:
    """Returns a value of environment.json as text."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return " ".join(value) if isinstance(value, list) else str(value)


def _introduction(report: RunReport) -> str:
    config, evaluation, history = report.config, report.evaluation, report.history
    largest, smallest = max(report.class_counts), min(report.class_counts)
    num_experts = config.model.num_experts
    experts = "one expert" if num_experts == 1 else f"{num_experts} experts"
    training = "has no training history in this run"
    if history:
        training = f"was trained for {report.epochs_and_time} with the `{config.loss.name}` loss"
        if config.classifier.method != "none":
            training += f"; its classifiers were then replaced (`classifier.method` {config.classifier.method})"
    sentences = [f"A `{config.model.backbone}` with {experts} {training}."]
    if config.evaluation.average == "probabilities" and num_experts > 1:
        sentences.append("Its prediction is the mean of the experts' probabilities, not of their logits.")
    if config.evaluation.views != "one":
        number = NUM_VIEWS[config.evaluation.views]
        sentences.append(f"The outputs are averaged over {number} views of each image: {config.evaluation.views}.")
    sentences += [
        f"The data set `{config.data.name}` has {sum(report.class_counts):,} training images of "
        f"{len(report.class_counts):,} classes: the most common class has {largest:,} images, and the rarest "
        f"{rarest(smallest, largest)}.",
        f"The accuracy on {evaluation.num_images:,} test images is **{percent(evaluation.accuracy)} %**, and "
        f"**{percent(evaluation.balanced)} %** if every class has the same weight.",
        f"These are the results of one run with seed {config.seed}; other seeds give slightly different ones.",
    ]
    return " ".join(sentences)


def results_table(evaluations: Mapping[str, Evaluation]) -> ReportTable:
    """Accuracies, calibration error and likelihood of each split."""
    rows = []
    for split, e in evaluations.items():
        nll = "n/a" if e.nll is None else f"{e.nll:.3f}"
        rows.append([split, f"{e.num_images:,}", *accuracies(e), percent(e.top5), percent(e.ece), nll])
    notes = [
        "Overall: every image has the same weight. Balanced: every class has the same weight. Many, medium and few: "
        "balanced over the classes of a group. Calibration error (ECE): gap between confidence and accuracy, in "
        "percentage points. NLL: mean negative log-likelihood of the true class, in nats."
    ]
    header = ["accuracy (%)", "images", *ACCURACIES, "top-5", "calibration error", "NLL"]
    return ReportTable(header, rows, notes=notes)


def _results(evaluations: Mapping[str, Evaluation]) -> list[str]:
    table = results_table(evaluations)
    explanations = [table.markdown(), *table.notes]
    if (temperature := evaluations["test"].temperature) != 1:
        before = ", ".join(f"{split} {percent(e.uncalibrated_ece)} %" for split, e in evaluations.items())
        explanations.append(
            f"Probabilities are the softmax of the logits divided by the model's temperature, {temperature:.4g}. It "
            "was chosen on the validation images, unless it was set, and changes no predicted class. Calibration error "
            f"without it: {before}."
        )
    return explanations


def class_size_table(report: RunReport) -> ReportTable:
    """Size and accuracy of each shot group, and the groups of the classes that its images are predicted to be of."""
    evaluation = report.evaluation
    shots, counts = np.asarray(evaluation.shots), np.asarray(report.class_counts)
    has_images = evaluation.confusion.sum(axis=1) > 0
    rows = []
    for shot in SHOTS:
        members = shots == shot
        images = evaluation.confusion[members].sum(axis=0)  # by predicted class
        predicted = [images[shots == group].sum() / images.sum() if images.sum() else None for group in SHOTS]
        num_classes, num_tested = members.sum(), has_images[members].sum()
        classes = f"{num_classes:,}" + (f" ({num_tested:,} tested)" if num_tested < num_classes else "")
        sizes = [f"{counts[members].sum():,}", f"{images.sum():,}"]
        numbers = map(percent, (getattr(evaluation, shot), *predicted))
        rows.append([shot, class_size(shot, evaluation.thresholds), classes, *sizes, *numbers])
    header = ["group", "training images per class", "classes", "training images", "test images", "accuracy (%)"]
    notes = [
        "The last columns: the percentage of the group's test images that the model predicts to be of a class of each "
        "group."
    ]
    return ReportTable([*header, *(f"predicted {shot} (%)" for shot in SHOTS)], rows, notes=notes, text_columns=2)


def _class_sizes(report: RunReport) -> list[str]:
    table = class_size_table(report)
    return [table.markdown(), *table.notes]


def expert_sections(evaluation: Evaluation) -> list[str]:
    """Returns the section about each expert alone; nothing for one expert."""
    if len(evaluation.experts) == 1:
        return []
    return [
        "## Experts",
        accuracy_table(evaluation).markdown(),
        f"Two experts disagree on {percent(evaluation.disagreement)} % of the images (mean over pairs).",
    ]


def routing_sections(routing: RoutingReport) -> list[str]:
    """Returns the section about routing, without its plot."""
    source = f"was chosen on the {routing.chosen_on} images" if routing.chosen_on else "was set, not chosen"
    is_scaled = routing.ece != routing.uncalibrated_ece
    uncalibrated = f", and {percent(routing.uncalibrated_ece)} % without temperature scaling" if is_scaled else ""
    note = (
        "Accuracy in % on the test images. In the first rows all images use the same number of experts, without a "
        "router. The last row is routing, with its mean number of experts. MACs: multiply-accumulates per image. Cost: "
        "relative to an image that stops after the first expert."
    )
    if routing.num_views > 1:
        note += f" MACs count all {routing.num_views} views of an image."
    if speed := routing.images_per_second:
        note += (
            f" Images/s: measured with batches of {speed.batch_size} images, all rows in turn; the median of "
            f"{pluralize(speed.rounds, 'round')}."
        )
    return [
        "## Routing",
        "An image continues to the next expert if the router's probability is above the threshold "
        f"{routing.threshold:.4g}, which {source}. {' '.join(routing_notes(routing))} Calibration error of the routed "
        f"predictions: {percent(routing.ece)} %{uncalibrated}.",
        routing_table(routing).markdown(),
        note,
    ]


def _routing(folder: Path, routing: RoutingReport) -> list[str]:
    plots.plot_tradeoff(folder / "plots" / "routing.png", routing)
    return [
        *routing_sections(routing),
        "![Routing](plots/routing.png)",
        "The router's line shows all thresholds; a higher threshold costs less. The further it is above random "
        "routing, the better the router knows which images need more experts. No router can surpass the oracle, which "
        "knows the labels: only images that a later ensemble classifies correctly continue.",
    ]


def _plots(folder: Path, report: RunReport) -> list[str]:
    """Draws all plots that have content; returns their sections."""
    evaluation, names, counts = report.evaluation, report.class_names, report.class_counts
    sections = []

    def add(name: str, title: str, explanation: str) -> Path:
        sections.extend([f"![{title}](plots/{name}.png)", explanation])
        return folder / "plots" / f"{name}.png"

    explanation = (
        "Each point is a class, above its number of training images on a logarithmic scale. Horizontal lines are the "
        "means of the groups. They are at the same height if rare classes are classified as well as common ones."
    )
    plots.plot_classes(add("classes", "Accuracy of each class", explanation), evaluation, names, counts)
    if report.history:
        explanation = "A training accuracy far above the validation accuracy indicates overfitting."
        plots.plot_history(add("history", "Training", explanation), report.history)
    if evaluation.calibration is not None:
        explanation = (
            "Images are sorted by the model's confidence. Bars below the diagonal: the model is overconfident. Bars "
            "above it: the model is underconfident. The calibration error is the mean gap, weighted by the number of "
            "images."
        )
        plots.plot_calibration(add("calibration", "Calibration", explanation), evaluation)
    explanation = (
        "Rows are true classes, columns are predicted classes; the diagonal is correct. Dark cells left of the "
        "diagonal are rare classes that are predicted to be common ones, the typical error on long-tailed data. Dotted "
        "lines separate the groups. Grey rows have no test images."
    )
    plots.plot_confusion(add("confusion", "Confusion matrix", explanation), evaluation, names, counts)
    if len(evaluation.experts) > 1:
        explanation = "The ensemble is better than its experts if they make different errors."
        plots.plot_experts(add("experts", "Experts", explanation), evaluation)
    return sections


def _errors(report: RunReport) -> list[str]:
    """The least accurate classes and the most frequent confusions."""
    evaluation, names, sections = report.evaluation, report.class_names, ["None: every image is classified correctly."]
    if confusions := evaluation.frequent_confusions(10):
        accuracies = [(accuracy, label) for label, accuracy in enumerate(evaluation.per_class) if accuracy is not None]
        lowest = [
            [names[label], f"{report.class_counts[label]:,}", f"{evaluation.test_counts[label]:,}", percent(accuracy)]
            for accuracy, label in sorted(accuracies)[:10]
        ]
        frequent = [
            [names[true], names[predicted], f"{count:,}", percent(count / evaluation.test_counts[true])]
            for true, predicted, count in (confusion.values() for confusion in confusions)
        ]
        header = ["true class", "predicted class", "images", "of the true class (%)"]
        sections = [
            "Classes with the lowest accuracy:",
            ReportTable(["class", "training images", "test images", "accuracy (%)"], lowest).markdown(),
            "Most frequent confusions:",
            ReportTable(header, frequent, text_columns=2).markdown(),
        ]
    if report.predictions:
        sections.append(f"Prediction for each test image: [{report.predictions}]({report.predictions}).")
    return sections
