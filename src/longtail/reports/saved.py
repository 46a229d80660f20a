"""The content of a report from the files of a run that was evaluated, without the network and the data."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longtail.config.schema import Config
from longtail.data.build import load_data
from longtail.data.splits import ImageSplit
from longtail.evaluation.flops import Cost
from longtail.evaluation.image_outputs import OUTPUTS_FILE, ImageOutputs, load_image_outputs
from longtail.evaluation.metrics import Evaluation, confusion_counts
from longtail.evaluation.routing import RoutingReport
from longtail.evaluation.throughput import Speed
from longtail.reports.page import RunReport
from longtail.runs.run import PREDICTIONS_FILE, Run
from longtail.utils.console import without_notes
from longtail.utils.errors import InputError

logger = logging.getLogger(__name__)


def load_report(run: Run) -> tuple[RunReport, ImageOutputs] | None:
    """Returns the content of a run's report, and the outputs for its test images.

    None if the run has no complete and matching results: it was not evaluated, or by an earlier version, or its last
    evaluation was stopped.

    Raises:
        InputError: a file is damaged.
    """
    if not run.results_path.is_file() or not (run.folder / OUTPUTS_FILE).is_file():
        return None
    results, outputs = run.results(), load_image_outputs(run.folder / OUTPUTS_FILE)
    try:
        report = _report(run, results, outputs)
    except KeyError:  # an earlier version wrote less
        return None
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{run.results_path}: damaged ({error}); 'longtail evaluate {run.folder}' writes it again"
        ) from error
    return (report, outputs) if _match(report.evaluation, outputs) else None


def evaluated_images(run: Run, config: Config, fingerprint: str) -> ImageSplit | None:
    """Returns the test images of an evaluation, for pictures; None if they cannot be read or are other ones."""
    try:
        with without_notes():
            images = load_data(config.data, run.skipped() or ()).test
    except InputError as error:
        logger.warning("The report has no pictures: %s", error)
        return None
    if images.fingerprint(Path(config.data.root)) != fingerprint:
        logger.warning("The report has no pictures: the test images have changed; longtail evaluate %s", run.folder)
        return None
    return images


def _report(run: Run, results: dict[str, Any], outputs: ImageOutputs) -> RunReport:
    names, test = results["class_names"], results["test"]
    confusion = confusion_counts(outputs.predictions, outputs.labels, len(names)).numpy()
    evaluations = {"test": Evaluation.from_dict(test, confusion)}
    if "val" in results:  # its outputs are not kept, and its confusions not shown
        evaluations["val"] = Evaluation.from_dict(results["val"], np.zeros(confusion.shape, dtype=np.int64))
    speed = results.get("images_per_second")
    return RunReport(
        _evaluated_config(run.config, evaluations["test"], results["views"]),
        evaluations,
        names,
        results["class_counts"],
        run.history(),
        run.environment(),
        RoutingReport.from_dict(test["routing"]) if "routing" in test else None,
        speed and Speed(**speed),
        PREDICTIONS_FILE if (run.folder / PREDICTIONS_FILE).is_file() else None,
        Cost.from_dict(results["cost"]),
    )


def _evaluated_config(config: Config, evaluation: Evaluation, views: Any) -> Config:
    """The settings of the last evaluation, which can differ from those of the training."""
    limits = evaluation.thresholds._asdict()
    return replace(config, evaluation=replace(config.evaluation, views=views, **limits))


def _match(evaluation: Evaluation, outputs: ImageOutputs) -> bool:
    """Whether results and outputs are of the same evaluation."""
    hits = int((outputs.predictions == outputs.labels).sum())
    counts = tuple(evaluation.confusion.sum(axis=1).tolist())
    return counts == evaluation.test_counts and hits == round(evaluation.accuracy * evaluation.num_images)
