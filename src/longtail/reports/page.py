"""What people read after a run: the table in the terminal, and the run's page with its pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich import box
from rich.table import Table
from rich.text import Text

from longtail.data.imbalance import SHOTS
from longtail.evaluation.label_shift.report import LabelShiftReport
from longtail.evaluation.metrics import Evaluation, Scores
from longtail.evaluation.routing import RoutingResult, macs
from longtail.evaluation.routing_report import RoutingReport
from longtail.reports import plots
from longtail.utils.ensembles import Average
from longtail.utils.format import duration, escape, markdown_table, percent, pluralize


def summary(
    evaluation: Evaluation, title: str, *, many_above: int = 100, few_below: int = 20, average: Average = "logits"
) -> Table:
    """The ensemble's and each expert's accuracy, for the terminal.

    Args:
        evaluation: what was measured.
        title: stands above the table.
        many_above: what the evaluation was made with; the caption explains it.
        few_below: likewise.
        average: likewise.
    """
    lines = ["Accuracy in %. Balanced: mean over classes."]
    if average == "probabilities" and evaluation.experts[1:]:
        lines.append("Ensemble: mean of the experts' probabilities, not of their logits.")
    for shot in SHOTS:
        classes = pluralize(evaluation.shots.count(shot), "class", "classes")
        lines.append(f"{shot}: {classes} of {_range(shot, many_above, few_below)} training images")
    if evaluation.top5 is not None:
        lines.append(f"True class among the five most likely: {percent(evaluation.top5)} %")
    if evaluation.ece is not None:
        lines.append(f"Calibration error (ECE): {percent(evaluation.ece)} %")
    if evaluation.disagreement is not None:
        lines.append(f"Two experts disagree on {percent(evaluation.disagreement)} % of images")
    table = Table(
        title=Text(title), caption="\n".join(lines), box=box.SIMPLE_HEAD, caption_justify="left", title_justify="left"
    )
    table.add_column("")
    for column in ("overall", "balanced", *SHOTS):
        table.add_column(column, justify="right")
    for position, (name, scores) in enumerate(_classifiers(evaluation).items()):
        table.add_row(name, *_numbers(scores), style="bold" if position == 0 else "")
    return table


def routing_summary(report: RoutingReport, title: str) -> Table:
    """What routing costs and reaches beside the first, the first two, ..., and all experts, for the terminal.

    Args:
        report: what was measured.
        title: stands above the table.
    """
    caption = ["Accuracy in %. MACs: multiply-accumulates an image; × the first expert.", *_experts_used(report.result)]
    table = Table(
        title=Text(title),
        caption="\n".join(caption),
        box=box.SIMPLE_HEAD,
        caption_justify="left",
        title_justify="left",
        collapse_padding=True,  # so that nine columns fit into 80
        pad_edge=False,
    )
    header, rows = _routing_rows(report)
    for position, column in enumerate(header):
        table.add_column(column, justify="right" if position else "left")
    for number, row in enumerate(rows, start=1):
        table.add_row(*row, style="bold" if number == len(rows) else "")
    return table


def write_report(
    folder: Path,
    *,
    config: dict[str, Any],
    evaluations: dict[str, Evaluation],
    class_names: Sequence[str],
    class_counts: Sequence[int],
    history: Sequence[dict[str, Any]],
    environment: dict[str, Any],
    many_above: int = 100,
    few_below: int = 20,
    routing: RoutingReport | None = None,
    predictions: str | None = None,
) -> None:
    """Writes ``report.md`` and ``plots/*.png`` into a run's folder.

    Args:
        folder: the run's.
        config: all settings, nested as in the configuration file.
        evaluations: by part of the data, the most important first; pictures and details are of that one.
        class_names: C names.
        class_counts: training images of each class, C numbers.
        history: one entry an epoch: epoch, loss, accuracy, learning_rate, seconds and perhaps val_accuracy and
            val_balanced. Empty where nothing was trained.
        environment: versions and device, one line each.
        many_above: what the evaluations were made with.
        few_below: likewise.
        routing: of the same images as the first evaluation; None for a model without a router.
        predictions: name of the file in the folder that says what is said of each image; None where there is none.
    """
    part, evaluation = next(iter(evaluations.items()))
    pages = [
        [f"# {escape(config['name'])}", "", _in_words(config, part, evaluation, class_counts, history)],
        ["## Result", "", *_results(evaluations)],
        ["## Common and rare classes", "", *_groups(evaluation, class_counts, many_above, few_below)],
        *([_experts(evaluation)] if evaluation.experts[1:] else []),
        *([_routing(folder, part, routing)] if routing else []),
        _pictures(folder, evaluation, class_names, class_counts, history),
        ["## Where it errs", "", *_errors(evaluation, class_names, class_counts, predictions)],
        ["## Settings", "", "```yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True).rstrip(), "```"],
        [
            "## Environment",
            "",
            *markdown_table(["", ""], [[escape(k), escape(v)] for k, v in environment.items()], texts=2),
        ],
    ]
    text = "\n\n".join("\n".join(page) for page in pages)
    # Names of folders may hold bytes that are no text.
    (folder / "report.md").write_text(text + "\n", encoding="utf-8", errors="replace")


def label_shift_summary(report: LabelShiftReport, title: str) -> Table:
    """A model under label shift, for the terminal."""
    header, rows = _label_shift_rows(report)
    table = Table(
        title=Text(title),
        caption="\n".join(_label_shift_notes(report)),
        box=box.SIMPLE_HEAD,
        caption_justify="left",
        title_justify="left",
        collapse_padding=True,
        pad_edge=False,
    )
    for position, column in enumerate(header):
        # Where a terminal is too narrow, "expert 1" can stand in two lines, and no other name.
        table.add_column(column, justify="right" if position else "left", no_wrap=not column.startswith("expert"))
    for row in rows:
        table.add_row(*row)
    return table


def write_label_shift(folder: Path, report: LabelShiftReport, title: str) -> None:
    """Writes ``label_shift.md`` into a run's folder, with the experts' weights, for which a terminal has no room."""
    notes = _label_shift_notes(report)
    header, rows = _label_shift_rows(report)
    if report.rows[0].weights is not None:
        header.append("weights")
        for line, row in zip(rows, report.rows, strict=True):
            line.append(" ".join(f"{weight:.2f}" for weight in row.weights or ()))
        notes.append("Weights: of expert 1, 2, ... in the aggregated answers.")
    lines = [f"# {escape(title)}", "", *markdown_table(header, rows), ""]
    (folder / "label_shift.md").write_text(
        "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n", encoding="utf-8", errors="replace"
    )


def _label_shift_rows(report: LabelShiftReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table. One expert is the whole model, and cannot be weighted."""
    several = report.rows[0].weights is not None
    header = ["distribution", "images", "ensemble" if several else "model", "adjusted"]
    if several:
        header += ["aggregated", *(f"expert {e}" for e, _ in enumerate(report.rows[0].experts, start=1))]
    rows = []
    for row in report.rows:
        numbers = [row.mean, row.known_prior, *([row.aggregated, *row.experts] if several else [])]
        rows.append([row.distribution, f"{row.num_images:,}", *map(percent, numbers)])
    return header, rows


def _label_shift_notes(report: LabelShiftReport) -> list[str]:
    notes = [
        "Accuracy in % on parts of these images; every image counts once.",
        "Forward-50: for one image of the class that is rarest in training there are 50 of the commonest; backward-50: "
        "the other way round; uniform: as many of each.",
        "Adjusted: told how common each class is in that part.",
    ]
    if report.rows[0].weights is not None:
        notes.insert(2, f"Ensemble: all experts, the mean of their {report.average}.")
        notes.append("Aggregated: experts weighted by how stable their answers are, found without labels (SADE).")
        if report.alike:
            notes.append("Weights help experts that were trained for different class shares; these were for the same.")
    if report.approximation:
        notes.append(f"The adjustment is approximate: {report.approximation}.")
    if report.left_out:
        notes.append(f"Without ratios {', '.join(map(str, report.left_out))}, for which a class has too few images.")
    return notes


def _in_words(
    config: dict[str, Any],
    part: str,
    evaluation: Evaluation,
    class_counts: Sequence[int],
    history: Sequence[dict[str, Any]],
) -> str:
    """The run in one paragraph."""
    model, largest, smallest = config["model"], max(class_counts), min(class_counts)
    experts = "one expert" if model["num_experts"] == 1 else f"{model['num_experts']} experts"
    seconds = sum(entry.get("seconds") or 0 for entry in history)
    how = (
        f"was trained for {pluralize(len(history), 'epoch', 'epochs')} in {duration(seconds)} with the "
        f"`{config['loss']['name']}` loss{_other_classifiers(config)}"
        if history
        else "was not trained in this run (there is no history of its training)"
    )
    rarest = f"{smallest:,}: an imbalance of {largest / smallest:,.4g} to 1" if smallest else "none"
    averaged = config["evaluation"]["average"] == "probabilities" and model["num_experts"] > 1
    answers = " Its answer is the mean of the experts' probabilities, not of their logits." if averaged else ""
    return (
        f"A `{model['backbone']}` with {experts} {how}.{answers} The data set is `{config['data']['name']}`: "
        f"{sum(class_counts):,} training images of {len(class_counts):,} classes. The most common class has "
        f"{largest:,} images and the rarest {rarest}. On {evaluation.num_images:,} {part} images the "
        f"model is right in **{percent(evaluation.accuracy)} %**, and in **{percent(evaluation.balanced)} %** where "
        f"every class counts the same. These are the numbers of one run with seed {config['seed']}; another seed "
        f"gives somewhat different ones."
    )


def _other_classifiers(config: dict[str, Any]) -> str:
    method = config.get("classifier", {}).get("method", "none")
    return "" if method == "none" else f"; its classifiers were then replaced (`classifier.method` {method})"


def _results(evaluations: dict[str, Evaluation]) -> list[str]:
    header = ["accuracy in %", "images", "overall", "balanced", *SHOTS, "top-5", "calibration error", "NLL"]
    rows = [
        [
            part,
            f"{e.num_images:,}",
            *_numbers(e),
            percent(e.top5),
            percent(e.ece),
            "n/a" if e.nll is None else f"{e.nll:.3f}",
        ]
        for part, e in evaluations.items()
    ]
    return [
        *markdown_table(header, rows),
        "",
        "Overall counts every image once, balanced every class once; many, medium and few are balanced over the "
        "classes of a group. The calibration error (ECE) is the gap between confidence and accuracy in percentage "
        "points, the NLL the mean negative log-likelihood of the true class in nats.",
    ]


def _groups(evaluation: Evaluation, class_counts: Sequence[int], many_above: int, few_below: int) -> list[str]:
    """The shot groups: how many classes and images, how accurate, and which groups the answers are in."""
    shots, counts = np.asarray(evaluation.shots), np.asarray(class_counts)
    header = ["group", "training images a class", "classes", "training images", "test images", "accuracy (%)"]
    rows = []
    tested = evaluation.confusion.sum(axis=1) > 0
    for shot in SHOTS:
        images = evaluation.confusion[shots == shot].sum(axis=0)
        taken = [images[shots == other].sum() / images.sum() if images.sum() else None for other in SHOTS]
        sizes = [counts[shots == shot].sum(), images.sum()]
        classes, covered = (shots == shot).sum(), tested[shots == shot].sum()
        named = f"{classes:,}" + (f" ({covered:,} tested)" if covered < classes else "")
        accuracy = percent(getattr(evaluation, shot))
        row = [shot, _range(shot, many_above, few_below), named, *(f"{size:,}" for size in sizes), accuracy]
        rows.append([*row, *map(percent, taken)])
    note = "The last columns: of the images of a group, the share (%) that is taken for a class of each group."
    return [*markdown_table([*header, *(f"taken for {shot}" for shot in SHOTS)], rows, texts=2), "", note]


def _experts(evaluation: Evaluation) -> list[str]:
    rows = [[name, *_numbers(scores)] for name, scores in _classifiers(evaluation).items()]
    return [
        "## Experts",
        "",
        *markdown_table(["accuracy in %", "overall", "balanced", *SHOTS], rows),
        "",
        f"Two experts disagree on {percent(evaluation.disagreement)} % of the images (mean over pairs).",
    ]


def _routing(folder: Path, part: str, report: RoutingReport) -> list[str]:
    """The routed answers beside those of a fixed number of experts, and their picture."""
    result = report.result
    where = folder / "plots"
    where.mkdir(parents=True, exist_ok=True)
    plots.plot_tradeoff(where / "routing.png", result, report.curve, report.chance, report.oracle)
    chosen = f"was chosen on the {report.chosen_on} images" if report.chosen_on else "was given"
    header, rows = _routing_rows(report)
    notes = [
        f"Accuracy in % on the {part} images. In the first rows all images see the same number of experts, which "
        "needs no router; in the last it is the mean. MACs are multiply-accumulates an image, and the cost is relative "
        "to an image that stops after the first expert."
    ]
    if report.speed is not None:
        notes.append(
            f"Images a second were measured with {report.speed.batch_size} images at a time, all rows in turn, and are "
            f"the median of {pluralize(report.speed.rounds, 'round', 'rounds')}."
        )
    return [
        "## Routing",
        "",
        f"An image goes on to the next expert where the router's probability is above {result.threshold:.4g}. This "
        f"threshold {chosen}. {' '.join(_experts_used(result))}",
        "",
        *markdown_table(header, rows),
        "",
        " ".join(notes),
        "",
        "![Routing](plots/routing.png)",
        "",
        "The further the router's line is above that of random routing, the better it knows which images need more "
        "experts; along it, a higher threshold is cheaper. The dashed line is what no router can surpass: it sends on "
        "only those images that a later answer gets right.",
    ]


def _routing_rows(report: RoutingReport) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a table: each number of experts for all images, and at the end the routing."""
    result, speed = report.result, report.speed
    header = ["experts", "overall", "balanced", *SHOTS, "MACs", "cost"]
    names = [pluralize(number, "expert", "experts") for number in range(1, len(result.prefixes) + 1)]
    # The router's own number of experts stands in its name: another column would be too much for a terminal.
    names.append(f"routed: {result.mean_experts:.2f}")
    rows = [
        [name, *_numbers(scores), macs(scores.cost), f"{scores.relative_cost:.2f}×"]
        for name, scores in zip(names, [*result.prefixes, result], strict=True)
    ]
    if speed is not None:
        header.append("images/s")
        for row, rate in zip(rows, (*speed.prefixes, speed.routed), strict=True):
            row.append("n/a" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}")
    return header, rows


def _experts_used(result: RoutingResult) -> list[str]:
    """How many experts the routed images used, in two sentences."""
    shares = [f"{pluralize(k, 'expert', 'experts')} {percent(share)} %" for k, share in enumerate(result.shares, 1)]
    means = [f"{shot} {'n/a' if mean is None else f'{mean:.2f}'}" for shot, mean in result.mean_experts_by_shot.items()]
    return [f"Images by experts used: {', '.join(shares)}.", f"Mean experts used by shot group: {', '.join(means)}."]


def _pictures(
    folder: Path,
    evaluation: Evaluation,
    class_names: Sequence[str],
    class_counts: Sequence[int],
    history: Sequence[dict[str, Any]],
) -> list[str]:
    """Draws every picture that has something to show; their part of the page."""
    where = folder / "plots"
    where.mkdir(parents=True, exist_ok=True)
    lines = ["## Pictures"]

    def show(name: str, title: str, reading: str) -> Path:
        lines.extend(["", f"![{title}](plots/{name}.png)", "", reading])
        return where / f"{name}.png"

    reading = (
        "A point is a class; below it stand its training images, on a logarithmic scale. Horizontal lines are the "
        "means of the groups; a model that is fair to rare classes has them at one height."
    )
    plots.plot_classes(show("classes", "Accuracy of each class", reading), evaluation, class_names, class_counts)
    if history:
        reading = (
            "A training accuracy far above the validation accuracy says that images are learnt by heart (overfitting)."
        )
        plots.plot_history(show("history", "Training", reading), history)
    if evaluation.calibration is not None:
        reading = (
            "Images are sorted by how sure the model is. Bars below the diagonal: it is more sure than it is right; "
            "above: the other way round. The calibration error is the mean distance, weighted by the images below."
        )
        plots.plot_calibration(show("calibration", "Calibration", reading), evaluation)
    reading = (
        "A row is a true class, a column what it is taken for; the diagonal is right. Dark cells left of it are rare "
        "classes taken for common ones, the usual mistake on a long tail. Dotted lines separate the groups; grey rows "
        "have no test images."
    )
    plots.plot_confusion(show("confusion", "Confusions", reading), evaluation, class_names, class_counts)
    if evaluation.experts[1:]:
        reading = "The ensemble gains where the experts make different mistakes."
        plots.plot_experts(show("experts", "Experts", reading), evaluation)
    return lines


def _errors(
    evaluation: Evaluation, class_names: Sequence[str], class_counts: Sequence[int], predictions: str | None
) -> list[str]:
    """The least accurate classes and the most frequent mistakes."""
    names = [escape(name) for name in class_names]
    tested = [(accuracy, label) for label, accuracy in enumerate(evaluation.per_class) if accuracy is not None]
    worst = [
        [names[label], f"{class_counts[label]:,}", f"{evaluation.test_counts[label]:,}", percent(accuracy)]
        for accuracy, label in sorted(tested)[:10]
    ]
    mistakes = [
        [
            names[wrong["true"]],
            names[wrong["predicted"]],
            f"{wrong['count']:,}",
            percent(wrong["count"] / evaluation.test_counts[wrong["true"]]),
        ]
        for wrong in evaluation.frequent_confusions(10)
    ]
    each = ["", f"What is said of each test image: [{predictions}]({predictions})."] if predictions else []
    if not mistakes:
        return ["Nowhere: every image is classified right.", *each]
    return [
        "The least accurate classes:",
        "",
        *markdown_table(["class", "training images", "test images", "accuracy (%)"], worst),
        "",
        "The most frequent mistakes:",
        "",
        *markdown_table(["true class", "taken for", "images", "of the class (%)"], mistakes, texts=2),
        *each,
    ]


def _classifiers(evaluation: Evaluation) -> dict[str, Scores]:
    """Every row of a table of accuracies. One expert is the whole model and needs no second row."""
    if len(evaluation.experts) == 1:
        return {"model": evaluation}
    return {"ensemble": evaluation} | {f"expert {e}": scores for e, scores in enumerate(evaluation.experts, start=1)}


def _numbers(scores: Scores) -> list[str]:
    return [percent(value) for value in (scores.accuracy, scores.balanced, scores.many, scores.medium, scores.few)]


def _range(shot: str, many_above: int, few_below: int) -> str:
    """Training images of the classes in a group, in words."""
    between = f"{few_below} to {many_above}" if few_below <= many_above else "none"
    return {"many": f"over {many_above}", "medium": between, "few": f"under {few_below}"}[shot]
