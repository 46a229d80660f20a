"""The results of a run: written into its folder, and shown in the terminal."""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from longtail.data.imbalance import ShotThresholds
from longtail.evaluation.evaluator import EvaluationResults, SplitName
from longtail.evaluation.metrics import BLOCK
from longtail.evaluation.outputs import ModelOutputs
from longtail.reports.page import routing_summary, summary, write_report
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.runs.run import PREDICTIONS_FILE
from longtail.utils.console import show
from longtail.utils.ensembles import ensemble

logger = logging.getLogger(__name__)


def write_results(context: RunContext, results: EvaluationResults, metadata: ModelMetadata) -> None:
    """Writes results.json, report.md, plots/ and, if test images are files, predictions.csv."""
    run, config, test = context.run, context.config, context.dataset.test
    if not run.writes:
        return
    content = {split: evaluation.as_dict() for split, evaluation in results.evaluations.items()}
    for split, report in results.routings.items():
        content[split]["routing"] = report.as_dict()
    if test.paths is not None:
        rows = _predictions(test.paths, results.outputs["test"], metadata.class_names, config.data.root)
        run.write_csv(PREDICTIONS_FILE, rows)
    write_report(
        run.folder,
        config=asdict(config),
        evaluations={str(split): evaluation for split, evaluation in results.evaluations.items()},
        class_names=metadata.class_names,
        class_counts=metadata.class_counts,
        history=run.history(),
        environment=run.environment(),
        thresholds=ShotThresholds(config.evaluation.many_above, config.evaluation.few_below),
        routing=results.routings.get("test"),
        predictions=None if test.paths is None else PREDICTIONS_FILE,
    )
    classes = {"class_names": list(metadata.class_names), "class_counts": list(metadata.class_counts)}
    # Last: this file marks the evaluation as complete.
    run.write_json("results.json", {"epoch": metadata.epoch, **content, **classes})


def log_results(context: RunContext, results: EvaluationResults, split: SplitName) -> None:
    """Shows the results of a split as tables."""
    config, evaluation = context.config, results.evaluations[split]
    thresholds = ShotThresholds(config.evaluation.many_above, config.evaluation.few_below)
    title = f"{config.name}: {evaluation.num_images:,} {split} images"
    show(summary(evaluation, title, thresholds=thresholds, average=results.outputs[split].average))
    if report := results.routings.get(split):
        show(routing_summary(report, f"{config.name}: routing of {evaluation.num_images:,} {split} images"))
    logger.info("Results, plots and settings: %s", context.run.folder / "report.md")


def _predictions(
    paths: Iterable[Path], outputs: ModelOutputs, class_names: Sequence[str], root: str
) -> Iterator[tuple[object, ...]]:
    """The prediction of all experts together for each image."""
    yield "picture", "class", "predicted", "probability"
    blocks = torch.split(outputs.logits, BLOCK)
    best = (ensemble(block, outputs.average).softmax(dim=1).max(dim=1) for block in blocks)
    predicted = (pair for block in best for pair in zip(*map(Tensor.tolist, block), strict=True))
    for path, label, (probability, prediction) in zip(paths, outputs.labels.tolist(), predicted, strict=True):
        yield os.path.relpath(path, root), class_names[label], class_names[prediction], f"{probability:.6g}"
