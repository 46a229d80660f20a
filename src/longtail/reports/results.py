"""The results of a run: written into its folder, and shown in the terminal."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from longtail.data.loaders import Loader
from longtail.evaluation.evaluator import EvaluationResults, evaluate_splits, set_temperature
from longtail.evaluation.image_outputs import OUTPUTS_FILE, ImageOutputs, image_outputs, save_image_outputs
from longtail.evaluation.label_shift.evaluators import LabelShiftReport, LabelShiftTest, PriorTest
from longtail.evaluation.label_shift.learned_prior import learned_prior
from longtail.evaluation.label_shift.priors import UNIFORM
from longtail.evaluation.metrics import BLOCK
from longtail.evaluation.outputs import ModelOutputs, collect_outputs
from longtail.models.multi_expert import MultiExpert
from longtail.reports.html.page import HTML_FILE, write_html
from longtail.reports.page import RunReport, write_label_shift, write_report
from longtail.reports.tables import accuracy_table, label_shift_table, routing_table, speed_note
from longtail.runs.context import EvalSplit, RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.runs.run import PREDICTIONS_FILE
from longtail.utils.console import show
from longtail.utils.csv_lines import path_cell
from longtail.utils.ensembles import ensemble

logger = logging.getLogger(__name__)


def evaluate_and_write(
    context: RunContext,
    model: MultiExpert,
    metadata: ModelMetadata,
    loaders: Mapping[EvalSplit, Loader],
    choose_temperature: bool,
    before: Callable[[], None] | None = None,
) -> EvaluationResults:
    """Evaluates a model and writes its results; first chooses its temperature, if asked for, and saves it.

    Args:
        context: of the run.
        model: on the device.
        metadata: of the model.
        loaders: by split.
        choose_temperature: whether it is chosen as the settings ask.
        before: called before the model replaces the run's one. If it is given, the model is saved in any case.
    """
    outputs = {split: collect_outputs(model, loader, context.runtime.group) for split, loader in loaders.items()}
    if choose_temperature:
        outputs = set_temperature(model, outputs, context.config.evaluation.temperature)
    if choose_temperature or before is not None:
        context.run.save_model(model, metadata, before or (lambda: None))
    results = evaluate_splits(context, model, metadata, loaders, outputs)
    write_results(context, results, metadata)
    return results


def write_results(context: RunContext, results: EvaluationResults, metadata: ModelMetadata) -> None:
    """Writes results.json, outputs.safetensors, both reports, plots/ and, if test images are files, predictions.csv."""
    run, config, test = context.run, context.config, context.dataset.test
    if not run.writes:
        return
    content = {split: evaluation.as_dict() for split, evaluation in results.evaluations.items()}
    for split, report in results.routings.items():
        content[split]["routing"] = report.as_dict()
    if test.paths is not None:
        rows = _predictions(test.paths, results.outputs["test"], metadata.class_names, config.data.root)
        run.write_csv(PREDICTIONS_FILE, rows)
    page = RunReport(
        config,
        {str(split): evaluation for split, evaluation in results.evaluations.items()},
        metadata.class_names,
        metadata.class_counts,
        run.history(),
        run.environment(),
        results.routings.get("test"),
        results.speed,
        None if test.paths is None else PREDICTIONS_FILE,
        results.cost,
    )
    write_report(run.folder, page)
    outputs = _image_outputs(context, results.outputs["test"], metadata)
    save_image_outputs(run.folder / OUTPUTS_FILE, outputs)
    write_html(run.folder, page, outputs, test)
    cost = {} if results.cost is None else {"cost": asdict(results.cost)}
    speed = {} if results.speed is None else {"images_per_second": asdict(results.speed)}
    classes = {"class_names": list(metadata.class_names), "class_counts": list(metadata.class_counts)}
    views = {"views": config.evaluation.views}
    # Last: this file marks the evaluation as complete.
    run.write_json("results.json", {"epoch": metadata.epoch, **views, **content, **speed, **cost, **classes})


def _image_outputs(context: RunContext, outputs: ModelOutputs, metadata: ModelMetadata) -> ImageOutputs:
    config, learned = context.config, None
    if min(metadata.class_counts) > 0:  # otherwise the class shares that the experts assume are not known
        learned = learned_prior(config, metadata.class_counts, metadata.classifier, metadata.epoch).log_prior
    return image_outputs(outputs, context.dataset.test.fingerprint(Path(config.data.root)), learned)


def log_results(context: RunContext, results: EvaluationResults, split: EvalSplit) -> None:
    """Shows the results of a split as tables."""
    name, evaluation = context.config.name, results.evaluations[split]
    images, number = f"{evaluation.num_images:,} {split} images", results.outputs[split].num_views
    if number > 1:
        images += f", {number} views each"
    show(accuracy_table(evaluation, f"{name}: {images}"))
    if report := results.routings.get(split):
        show(routing_table(report, f"{name}: routing of {images}"))
    if results.speed is not None:
        logger.info(speed_note(results.speed))
    logger.info("Results, plots and settings: %s", context.run.folder / HTML_FILE)


def report_prior_test(test: PriorTest, outputs: ModelOutputs) -> None:
    """Evaluates with known class shares, shows the accuracies, and writes prior.json."""
    evaluation, context, learned = test.evaluate(outputs), test.context, test.learned
    name = "equally common classes" if test.prior == UNIFORM else f"the prior of {test.prior}"
    show(accuracy_table(evaluation, f"{context.config.name}: {test.split} images, adjusted to {name}"))
    if learned.approximation:
        logger.info("The adjustment is approximate: %s", learned.approximation)
    content = {"split": test.split, "prior": test.shares.tolist(), "approximation": learned.approximation}
    context.run.write_json("prior.json", content | evaluation.as_dict())


def report_label_shift(test: LabelShiftTest, report: LabelShiftReport) -> None:
    """Shows accuracies under label shift, and writes label_shift.json and label_shift.md."""
    run, title = test.context.run, f"{test.context.config.name}: label shift of the {test.split} images"
    show(label_shift_table(report, title))
    run.write_json("label_shift.json", {"split": test.split, **asdict(report)})
    write_label_shift(run.folder, label_shift_table(report, title, with_weights=True))
    addition = "" if report.rows[0].weights is None else ", with the experts' weights"
    logger.info("Also written to %s%s", run.folder / "label_shift.md", addition)


def _predictions(
    paths: Iterable[Path], outputs: ModelOutputs, class_names: Sequence[str], root: str
) -> Iterator[tuple[object, ...]]:
    """The prediction of the ensemble for each image."""
    yield "image", "class", "predicted", "probability"
    blocks = torch.split(outputs.logits, BLOCK)
    best = (_best(ensemble(block, outputs.average), outputs.temperature) for block in blocks)
    predicted = (pair for block in best for pair in zip(*map(Tensor.tolist, block), strict=True))
    for path, label, (prediction, probability) in zip(paths, outputs.labels.tolist(), predicted, strict=True):
        yield path_cell(os.path.relpath(path, root)), class_names[label], class_names[prediction], f"{probability:.6g}"


def _best(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The most probable class of each image, and its probability: (B,) each."""
    classes = logits.argmax(dim=1, keepdim=True)
    return classes.squeeze(1), (logits / temperature).softmax(dim=1).gather(1, classes).squeeze(1)
