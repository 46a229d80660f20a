"""What Python and the command line share: train, resume, evaluate, add a router, retrain the classifier, report."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from longtail.config.recipes import as_dict, checked_types, config_fingerprint, flat
from longtail.config.schema import Config
from longtail.data.build import find_corrupt_images, find_corrupt_test_images, load_data
from longtail.data.check.findings import Finding, FindingMaker, ImageChecks
from longtail.data.check.reading import read_images
from longtail.data.copies import AllImages, log_copies
from longtail.data.corrupt_images import SKIPPED_FILE, CorruptImage, from_text, to_text, without
from longtail.data.loaders import Loader
from longtail.data.memory_cache import CorruptImagesError
from longtail.data.splits import ImageSplit
from longtail.data.views import NUM_VIEWS
from longtail.evaluation.evaluator import (
    EvaluationResults,
    SplitName,
    eval_loaders,
    evaluate_splits,
    set_temperature,
)
from longtail.evaluation.flops import cost
from longtail.evaluation.label_errors import most_doubtful, split_label_doubts
from longtail.evaluation.label_shift.evaluators import LabelShiftTest, PriorTest
from longtail.evaluation.metrics import Evaluation
from longtail.evaluation.outputs import collect_outputs
from longtail.evaluation.routing import parse_budget
from longtail.interop.export import Images
from longtail.interop.export_model import BATCHES, check_target, export_model
from longtail.models.multi_expert import MultiExpert
from longtail.reports.check import check_table, write_findings
from longtail.reports.html.compare import ComparedRun, check_comparable, write_comparison
from longtail.reports.html.page import HTML_FILE, write_html
from longtail.reports.results import log_results, report_label_shift, report_prior_test, write_results
from longtail.reports.saved import load_report
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata, load_model_file, model_path
from longtail.runs.pulled import open_run
from longtail.runs.run import ADJUSTED_RESULTS, Run, new_run
from longtail.runtime.device import Runtime, environment, pick_device, warn_slow_precision
from longtail.runtime.distributed import SINGLE_PROCESS, Group, init_distributed
from longtail.runtime.process import GRACE, Signals, Stopped
from longtail.tracking import TrackedRun, list_trackers
from longtail.tracking.trackers import Trackers
from longtail.training.decoupled import train_classifier
from longtail.training.experts import ExpertStage
from longtail.training.frozen_stage import save_stages
from longtail.training.router import set_threshold, train_router
from longtail.training.teacher import check_recipe, find_teacher, load_teacher
from longtail.utils.console import show, without_notes
from longtail.utils.errors import InputError
from longtail.utils.format import duration, macs, pluralize, shortened_list

logger = logging.getLogger(__name__)

KEPT_IN_MODEL = ("average", "temperature")
"""Settings of the section evaluation that the model keeps, and so does the run if an evaluation changes them"""

MAX_CALIBRATION = 2000
"""Most validation images for the choice and the accuracy of 8-bit integers"""


def train(config: Config, output: str | Path | None = None) -> Run:
    """Trains and evaluates a model, and writes a run folder.

    After each epoch the run holds a model that can be used. The last epoch is the result; validation images do not
    select it.

    Args:
        config: the settings, see `longtail.load_recipe`.
        output: run folder; a new folder in runs/ by default. If it holds a run with the same settings, that run is
            resumed, so that a scheduler can repeat the same command; a finished run is returned as it is.

    Raises:
        InputError: settings, data or machine do not fit, and nothing is left behind; or training diverged.
        Stopped: a signal asked for it; everything is saved.
    """
    config = checked_types(config)
    with init_distributed(config.device) as group:
        if output is not None and _has_settings(Run(output), config):
            run = Run(output, group.is_main)
            if not run.is_finished:
                return _train(run, config, group)
            if run.config.data.root != config.data.root:
                raise InputError(
                    f"'{output}' is finished, with data.root '{run.config.data.root}'; choose another --output"
                )
            logger.info("%s is finished, with these settings; longtail evaluate %s evaluates it again", output, output)
            return run
        folder = group.broadcast_object(str(new_run(config.name, output).folder) if group.is_main else "")
        return _train(Run(folder, group.is_main), config, group)


def resume(run: Run | str | Path) -> Run:
    """Resumes an interrupted run exactly from its last checkpoint.

    Raises:
        InputError: as `train`; or there is no such run, or it is finished.
        Stopped: as `train`.
    """
    run = run if isinstance(run, Run) else Run(run)
    if not run.config_path.is_file():
        raise InputError(f"'{run.folder}' is not a run folder: it has no {run.config_path.name}")
    if run.is_converted:
        raise InputError(
            f"'{run.folder}' was converted or downloaded, not trained here, so there is nothing to resume; a new "
            f"training can start from its weights: longtail train --model.pretrained {run.folder}"
        )
    if run.is_finished:
        raise InputError(f"'{run.folder}' is finished; 'longtail evaluate {run.folder}' evaluates it again")
    with init_distributed(run.config.device) as group:
        return _train(Run(run.folder, group.is_main), run.config, group)


def evaluate(
    run: Run | str | Path,
    split: SplitName = "test",
    *,
    config: Config | None = None,
    compute_budget: float | str | None = None,
    max_accuracy_drop: float | None = None,
    prior: str | Path | None = None,
    label_shift: bool = False,
    fit_temperature: bool = False,
) -> Evaluation:
    """Evaluates a run, and writes its results.json, reports and plots again.

    Args:
        run: a run or its folder; the run may be interrupted. ``hf://owner/name`` is downloaded to runs/name.
        split: the split whose result is returned. Results of all splits are written.
        config: the run's own settings by default. Other settings may name the device, where the data are, how results
            are counted, or how the experts are averaged (evaluation.average) and the temperature of the probabilities
            (evaluation.temperature), which the model keeps.
        compute_budget: chooses the router's threshold again on the validation images, and keeps it: the most accurate
            one at this mean cost, 1.2 times that of one expert, or "70M" multiply-accumulates.
        max_accuracy_drop: chooses it as the cheapest one that loses at most so many points of balanced accuracy.
        prior: also evaluates with logits adjusted to these class shares: a file, see
            `longtail.evaluation.label_shift.priors.read_prior`, or "uniform". Written to prior.json.
        label_shift: also evaluates on subsets from the class shares of training to the opposite ones. Written to
            label_shift.json and label_shift.md.
        fit_temperature: chooses the temperature of the probabilities again on the validation images, and keeps it. A
            chosen temperature is also chosen again with the threshold or another average.

    Raises:
        InputError: there is no such run; another process uses it; its data are missing, have changed, or have no such
            split; or the settings are not those of the training.
    """
    run = _open(run)
    config = checked_types(config or run.config)
    if fit_temperature:
        config = replace(config, evaluation=replace(config.evaluation, temperature=None))
    if compute_budget is not None and max_accuracy_drop is not None:
        raise InputError("compute_budget and max_accuracy_drop are both set; set one of them")
    _check_goal_values(compute_budget, max_accuracy_drop)
    with _opened_model(run, config) as opened:
        context, model, metadata, loaders = opened
        if fit_temperature and "val" not in loaders:
            raise InputError(
                f"the temperature is chosen on validation images, and '{config.data.name}' has none here; it can be "
                "set: evaluation.temperature"
            )
        if split not in loaders:
            raise InputError(f"data set '{config.data.name}' has no split '{split}', only {' and '.join(loaders)}")
        prior_test = None if prior is None else PriorTest(context, metadata, split, prior)
        shift_test = LabelShiftTest(context, metadata, split) if label_shift else None
        choose_again = compute_budget is not None or max_accuracy_drop is not None or opened.average_changed
        fit_temperature |= model.temperature != 1 and choose_again
        if compute_budget is not None or max_accuracy_drop is not None:
            if model.router is None:
                raise InputError(f"{run.folder} has no router, so no threshold; 'longtail router' trains one")
            _check_threshold_goal(compute_budget, max_accuracy_drop, loaders)
            outputs = collect_outputs(model, loaders["val"], context.runtime.group)
            metadata = set_threshold(model, metadata, outputs, compute_budget, max_accuracy_drop)
            run.save_model(model, metadata)
        elif opened.average_changed:
            run.save_model(model, metadata)
            if model.router is not None:
                logger.info(
                    "The experts' %s are averaged now. Router and threshold are unchanged; to train them for it: "
                    "longtail router %s",
                    model.average,
                    run.folder,
                )
        results = _finish(opened, metadata, split, choose_temperature=fit_temperature or opened.temperature_changed)
        if prior_test is not None:
            report_prior_test(prior_test, results.outputs[split])
        if shift_test is not None and (report := shift_test.evaluate(model, results.outputs[split])):
            report_label_shift(shift_test, report)
    return results.evaluations[split]


def add_router(run: Run | str | Path, *, config: Config | None = None) -> Run:
    """Trains a router for a finished run or a converted checkpoint, replaces any earlier one, and evaluates the run.

    Args:
        run: a run or its folder.
        config: the run's own settings by default; other ones may change the section router.

    Raises:
        InputError: as `evaluate`; or the model has a single expert.
        Stopped: a signal asked for it; the same call resumes.
    """
    run = _open(run)
    config = checked_types(config or run.config)
    if config.model.num_experts > 1:
        config = replace(config, router=replace(config.router, train=True))
    with _opened_model(run, config) as opened:
        if opened.model.num_experts == 1:
            raise InputError(f"{run.folder} has one expert; a router needs several")
        _check_threshold_goal(config.router.compute_budget, config.router.max_accuracy_drop, opened.loaders)
        try:
            router = train_router(opened.context, opened.model, opened.metadata, opened.loaders.get("val"))
        except KeyboardInterrupt as error:
            logger.info("Stopped. %s is unchanged; the same command resumes", run.folder)
            raise Stopped from error
        _finish(opened, save_stages(opened.context, opened.model, router=router))
    return run


def retrain_classifier(run: Run | str | Path, *, config: Config | None = None) -> Run:
    """Replaces the classifiers of a finished run or a converted checkpoint, and evaluates the run.

    New classifiers are made from the experts' own ones, which the run keeps; method none restores these. If the run has
    a router it is trained again, because it was trained on the outputs of other classifiers.

    Args:
        run: a run or its folder.
        config: the run's own settings by default; other ones may change the section classifier.

    Raises:
        InputError: as `evaluate`; or there are no validation images to choose tau on, or nothing would change.
        Stopped: a signal asked for it; the same call resumes.
    """
    run = _open(run)
    config = checked_types(config or run.config)
    with _opened_model(run, config) as opened:
        context, model, metadata, loaders = opened
        restores = config.classifier.method == "none"
        if restores and not metadata.classifier and not run.heads_path.exists():
            raise InputError(
                f"{run.folder} has the experts' own classifiers already, which is what classifier.method 'none' means; "
                "retrain, scale, tau and nearest-mean make other ones"
            )
        _check_tau(config, loaders)
        is_routed = model.router is not None
        if is_routed:
            _check_threshold_goal(config.router.compute_budget, config.router.max_accuracy_drop, loaders)
        try:
            stages = {"classifier": train_classifier(context, model, metadata, loaders.get("val"))}
            if is_routed:
                stages["router"] = train_router(context, model, stages["classifier"].metadata, loaders.get("val"))
        except KeyboardInterrupt as error:
            logger.info("Stopped. %s is unchanged; the same command resumes", run.folder)
            raise Stopped from error
        _finish(opened, save_stages(context, model, **stages))
        if restores:  # last: without them the command has nothing to do
            run.remove("classifier.json", run.heads_path.name)
    return run


def track(run: Run | str | Path, to: str) -> None:
    """Sends a finished run to trackers, from its files: metrics, results, settings and plots.

    A tracker that has the run already gets what it lacks.

    Args:
        run: a run or its folder.
        to: trackers, separated by commas, see `longtail.config.schema.Config.track`.

    Raises:
        InputError: there is no such run, it is not finished, or it is in use; there is no such tracker, or it fails.
    """
    run, trackers = _open(run), Trackers(to, strict=True)
    if not trackers.names:
        raise InputError(f"track '{to}' names no tracker; there are {', '.join(list_trackers())}")
    if not run.is_finished:
        raise InputError(f"'{run.folder}' is not finished; finish it with: longtail train --resume {run.folder}")
    with run.lock(), trackers.sending(_tracked(run, run.config)):
        _send_epochs(run, trackers)
        _send_results(run, trackers)
    logger.info("Sent %s to %s", run.folder, " and ".join(trackers.names))


def check(
    config: Config | None = None,
    *,
    run: Run | str | Path | None = None,
    output: str | Path | None = None,
    min_side: int = 32,
) -> list[Finding]:
    """Checks the images of a data set, shows a table, and writes all findings to a CSV file.

    Finds images that do not decode, blank and tiny ones and those of unusual size, copies and near copies, and classes
    with few images. With a trained run it also finds likely wrong labels, see `longtail.evaluation.label_errors`.

    Args:
        config: settings whose section data names the images; those of the run by default.
        run: a run, or its folder, that was trained on these images.
        output: the CSV file; check.csv in the run folder, or in the current folder, by default.
        min_side: images whose smaller side has fewer pixels are tiny.

    Returns:
        The findings, in the order of `longtail.data.check.findings.KINDS`.

    Raises:
        InputError: there are no such images, or no such run; or the run was trained on other images.
    """
    run = None if run is None else _open(run)
    if config is None:
        if run is None:
            raise InputError("check needs settings or a run, which name the images")
        config = run.config
    path = Path(output) if output is not None else (Path() if run is None else run.folder) / "check.csv"
    if not path.parent.is_dir():
        raise InputError(f"output is '{path}', but '{path.parent}' is not a folder")
    images = AllImages(load_data(config.data), Path(config.data.root))
    checks = ImageChecks(images, read_images(images), min_side)
    findings = list(checks.findings())
    if run is not None:
        with _opened_model(run, config) as opened:
            findings += _wrong_labels(opened)
    write_findings(path, findings)
    show(check_table(findings, checks.summary(), has_run=run is not None))
    logger.info("All findings: %s", path)
    return findings


def report(run: Run | str | Path, *, config: Config | None = None) -> Path:
    """Writes the HTML page of an evaluated run again, from its saved outputs and without the network.

    A run that was not evaluated, or by an earlier version, is evaluated, see `evaluate`.

    Args:
        run: a run or its folder.
        config: the run's own settings by default; other ones may say where the data are. If these cannot be read, or
            are not those of the evaluation, the page has no pictures.

    Returns:
        The page, report.html in the run folder.

    Raises:
        InputError: there is no such run; another process uses it; or it has to be evaluated, and cannot be.
    """
    run = _open(run)
    config = checked_types(config or run.config)
    saved = load_report(run)
    if saved is None:
        _evaluate_first(run, config)
    else:
        content, outputs = saved
        content = replace(content, config=replace(content.config, data=config.data))
        with run.lock():
            write_html(run.folder, content, outputs, _test_images(run, config, outputs.test_images))
        logger.info("Report: %s", run.folder / HTML_FILE)
    return run.folder / HTML_FILE


def compare(runs: Sequence[Run | str | Path], output: str | Path = "compare.html") -> Path:
    """Writes an HTML page that compares runs with the same test images.

    It shows accuracies and costs, the difference of each pair of runs with McNemar's exact test, and the differences
    by class. Runs that were not evaluated, or by an earlier version, are evaluated first.

    Args:
        runs: two or more runs or their folders.
        output: the page.

    Returns:
        The page.

    Raises:
        InputError: there is no such run; the runs have different test images; or the page cannot be written.
    """
    path = Path(output)
    if len(runs) < 2:
        raise InputError(f"compare needs two or more runs, and got {len(runs)}")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"output is '{path}'; it must be a file in a folder that exists")
    compared = []
    for run in map(_open, runs):
        saved = load_report(run)
        if saved is None:
            _evaluate_first(run, run.config)
            saved = load_report(run)
            assert saved is not None
        compared.append(ComparedRun(run.folder, *saved))
    check_comparable(compared)
    write_comparison(path, compared)
    logger.info("Comparison: %s", path)
    return path


def _evaluate_first(run: Run, config: Config) -> None:
    logger.info("%s has no outputs of an evaluation by this version; it is evaluated", run.folder)
    evaluate(run, config=config)


def _test_images(run: Run, config: Config, fingerprint: str) -> ImageSplit | None:
    """The test images of an evaluation, for pictures; None if they cannot be read or are other ones."""
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


def _wrong_labels(opened: "_OpenedModel") -> Iterator[Finding]:
    """Yields the labels that are likely to be wrong, the most doubtful first."""
    context, model, metadata, loaders = opened
    images = AllImages(context.dataset, Path(context.config.data.root))
    finding, labels = FindingMaker(images), images.labels
    doubts = list(split_label_doubts(context, model, metadata, loaders))
    log_odds, suggested, probability = (torch.cat(parts).numpy() for parts in zip(*doubts, strict=True))
    for position in most_doubtful(log_odds, labels):
        detail = f"{metadata.class_names[suggested[position]]}, probability {probability[position]:.2f}"
        yield finding("likely wrong label", position, detail=detail)


def export(
    run: Run | str | Path,
    output: str | Path,
    *,
    format: str = "onnx",
    int8: bool = False,
    tolerance: float = 1.0,
    config: Config | None = None,
) -> Path:
    """Writes the model of a run in a format for other programs.

    The file is compared with PyTorch first, on images of the run or, if they are not there, on random ones. Nothing is
    written if it computes something else.

    Args:
        run: a run, its folder, a model file, or ``hf://owner/name``.
        output: file to write, such as ``model.onnx``. An earlier file is replaced; a folder must be new.
        format: ``onnx``, one file in which experts that the router skips are not computed; ``onnx-parts``, a folder
            with a file for each expert; ``torch``, a program of `torch.export` (``.pt2``) with all experts.
        int8: write an ONNX format with 8-bit integers. The validation images calibrate it, measure its accuracy, and
            choose the router's threshold again.
        tolerance: percentage points of accuracy, overall or balanced, that 8-bit integers may lose.
        config: settings that say where the data are; those of the run by default.

    Returns:
        The path of the output.

    Raises:
        InputError: there is no such model or format; the output cannot be written; a package of the extra ``onnx`` is
            missing; the network cannot be exported, or not correctly; or for 8-bit integers there are no validation
            images, or too much accuracy would be lost.
    """
    path = Path(output)
    info = check_target(path, format)
    if not 0 <= tolerance <= 100:
        raise InputError(f"tolerance is {tolerance:g}; it must be from 0 to 100 percentage points")
    if int8 and not info.has_int8:
        raise InputError(f"format '{format}' has no int8; use onnx or onnx-parts")
    model, metadata = load_model_file(model_path(run.folder if isinstance(run, Run) else run))
    images = _images_for_export(run, config, metadata, needs_validation=int8)
    start = time.perf_counter()
    exported, comparison = export_model(
        model,
        metadata,
        path,
        format,
        pixels=None if images is None else images.pixels,
        calibration=images if int8 else None,
        tolerance=tolerance,
    )
    for note in exported.notes:
        logger.info(note)
    if comparison is not None:
        logger.info(
            f"Compared with PyTorch on {pluralize(comparison.images, 'random image' if images is None else 'image')}: "
            f"largest difference of a logit {comparison.difference:.2g}, of logits up to {comparison.largest:.3g}"
        )
    size = exported.num_bytes / 2**20
    logger.info(f"Exported to {path} ({format}, {size:.1f} MiB) in {duration(time.perf_counter() - start)}")
    return path


def _images_for_export(
    run: Run | str | Path, config: Config | None, metadata: ModelMetadata, needs_validation: bool
) -> Images | None:
    """Returns validation images or, if only a comparison needs them, test images; None if there are none here."""
    try:
        # A comparison alone does not download a run from the Hub.
        opened = _open(run) if needs_validation or isinstance(run, Run) else Run.open(run)
        with without_notes():  # training said them
            context = _context(opened, checked_types(config or opened.config), SINGLE_PROCESS, Signals())
        dataset, data = context.dataset, context.config.data
        if dataset.class_names != metadata.class_names:
            raise InputError(f"data set '{data.name}' has other classes than the model")
        if needs_validation and dataset.val is None:
            raise InputError(f"data set '{data.name}' has no validation split here")
        split = dataset.test if dataset.val is None else dataset.val
        number = min(len(split), MAX_CALIBRATION if needs_validation else BATCHES[-1])
        chosen = np.linspace(0, len(split) - 1, number).astype(
            np.int64
        )  # of all classes, as splits may be in their order
        return Images(*context.eval_pixels(split.take(chosen)))
    except InputError as error:
        if needs_validation:
            raise InputError(f"int8 needs the validation images of the run: {error}") from error
        logger.info("The run's images cannot be used for the comparison with PyTorch, random ones can: %s", error)
        return None


# ---- training, stage by stage ----


def _has_settings(run: Run, config: Config) -> bool:
    """Whether a run was started with these settings."""
    if not run.config_path.is_file() or run.is_converted:
        return False
    return config_fingerprint(run.config) == config_fingerprint(config)


def _train(run: Run, config: Config, group: Group, student: RunContext | None = None) -> Run:
    """Trains a run as far as it is not trained; ``student`` is the run whose teacher it is."""
    is_started = run.config_path.is_file()
    trackers = Trackers(config.track, is_active=run.writes)
    signals = Signals(GRACE) if student is None else student.signals
    group.barrier()  # before anything is written that the others look for
    with signals.caught(), ExitStack() as stack:
        if is_started:
            stack.enter_context(_stops_resumably(run))
            stack.enter_context(run.lock())
        context = _context(run, config, group, signals, None if student is None else student.skipped)
        context = replace(context, trackers=trackers)
        stack.enter_context(context.runtime.tf32(config.training.tf32))
        context, plan = _make_plan(context, is_teacher=student is not None)
        if not is_started:
            stack.enter_context(run.lock())
            run.start(config, environment(context.runtime.device, group.size))
            stack.enter_context(_stops_resumably(run))
        if context.skipped is not None:
            run.write_skipped(context.skipped)
        try:
            with trackers.sending(_tracked(run, config)):
                _send_epochs(run, trackers)
                with _timed(run):
                    model, metadata = plan.run()
                results = _evaluate(context, model, metadata, plan.loaders, choose_temperature=True)
                _send_results(run, trackers)
        except KeyboardInterrupt:
            if student is None:  # otherwise the student's run is the one to resume
                plan.log_interrupted()
            raise
        except BaseException:
            # A run that holds hours of work stays, and can be resumed.
            work = run.model_path, run.checkpoint_path("experts"), run.views_folder, run.teacher_folder
            if run.writes and not is_started and not any(path.exists() for path in work):
                run.discard()
            raise
    log_results(context, results, "test")
    return run


def _tracked(run: Run, config: Config) -> TrackedRun:
    return TrackedRun(run.folder.resolve().name, run.tracking_folder, flat(as_dict(config)))


def _send_epochs(run: Run, trackers: Trackers) -> None:
    """Sends the epochs that are in the run folder; trackers leave out those that they have."""
    for stage, records in run.stage_records().items() if trackers.names else ():
        trackers.epochs(stage, *records)


def _send_results(run: Run, trackers: Trackers) -> None:
    if trackers.names and run.writes:
        trackers.results(run.results(), run.plots())


@contextmanager
def _stops_resumably(run: Run) -> Iterator[None]:
    """Turns an interrupt into `Stopped`: the run can be resumed."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(f"resume with: longtail train --resume {run.folder}") from error


class _Plan:
    """The stages that a run still needs. The constructor finds errors before hours of training."""

    def __init__(self, context: RunContext):
        self.context, config, run = context, context.config, context.run
        self.stage = "experts"
        # A teacher's folder may hold a model of an earlier start.
        self.progress = run.progress() if run.config_path.is_file() else None
        has_experts = self.progress is not None and self.progress.has_experts
        self.experts = None if has_experts else ExpertStage(context)
        if config.training.validate_every > 0 and context.dataset.val is None:
            raise InputError(
                f"training.validate_every is {config.training.validate_every}, but {config.data.name} has no "
                "validation split; set data.val_fraction to hold one out of the training images"
            )
        self.loaders = eval_loaders(context)
        _check_tau(config, self.loaders)
        if config.router.train:
            _check_threshold_goal(config.router.compute_budget, config.router.max_accuracy_drop, self.loaders)
        if self.experts is not None:
            views = NUM_VIEWS[config.evaluation.views]
            _check_budget(config.router.compute_budget, self.experts.model, self.experts.metadata, views)
        self.source = None if has_experts else find_teacher(config)
        if isinstance(self.source, Config):
            check_recipe(self.source, context)
        self.teacher = load_teacher(self.source, context) if isinstance(self.source, Path) else None

    def run(self) -> tuple[MultiExpert, ModelMetadata]:
        """Trains the stages that are not complete; returns the model, on the device, and its metadata."""
        context, val_loader = self.context, self.loaders.get("val")
        config, progress = context.config, self.progress
        if self.experts is None:
            model, metadata = context.run.load_model()
            metadata = _check_match(metadata, context)
            context.to_device(model)
        else:
            if isinstance(self.source, Config):
                self.teacher = load_teacher(_train_teacher(context, self.source).model_path, context)
            _log_start(context, self.experts.model)
            if context.runtime.group.is_main:
                log_copies(context.dataset, Path(config.data.root))
            metadata, model = self.experts.train(val_loader, self.teacher), self.experts.model
            self.experts = self.teacher = None  # frees their memory
        self.stage = "classifier"
        has_classifier = progress is not None and progress.has_classifier
        if config.classifier.method != "none" and not has_classifier:
            classifier = train_classifier(context, model, metadata, val_loader)
            metadata = save_stages(context, model, classifier=classifier)
        self.stage = "router"
        if config.router.train and not (progress is not None and has_classifier and progress.is_routed):
            metadata = save_stages(context, model, router=train_router(context, model, metadata, val_loader))
        self.stage = "evaluation"
        context.run.remove_checkpoints()  # a killed process may have left some
        return model, metadata

    def log_interrupted(self) -> None:
        """Logs what the run holds, and how to resume it."""
        run, epochs = self.context.run, self.context.config.training.epochs
        resumed = f"resume with: longtail train --resume {run.folder}"
        contents = {
            "evaluation": "the trained model",
            "classifier": "the experts with their own classifiers",
            "router": "the experts without a router",
        }.get(self.stage)
        if contents is None and not run.model_path.exists():
            logger.info("Stopped before the experts' training; %s", resumed)
            return
        if contents is None:
            done = run.progress().epochs
            contents = f"the model after epoch {done} of {epochs}" if done else f"the model in epoch 1 of {epochs}"
            resumed += f"; evaluate it with: longtail evaluate {run.folder}"
        logger.info("Stopped. %s holds %s; %s", run.folder, contents, resumed)


@contextmanager
def _timed(run: Run) -> Iterator[None]:
    """Adds the time within it to the training time of the run."""
    start = time.perf_counter()
    try:
        yield
    finally:
        known = run.environment()
        seconds = known.get("training_seconds", 0.0) + time.perf_counter() - start
        run.write_json("environment.json", known | {"training_seconds": seconds})


def _train_teacher(context: RunContext, config: Config) -> Run:
    """Trains the teacher's run, in a folder of the student's run, as far as it is not trained."""
    teacher = Run(context.run.teacher_folder, context.run.writes)
    if teacher.is_finished and config_fingerprint(teacher.config) != config_fingerprint(config):
        raise InputError(
            f"{teacher.folder} was trained with other settings than teacher '{context.config.teacher}' has now; "
            "restore these, or remove the folder to train the teacher again"
        )
    if not teacher.is_finished:
        _train(teacher, config, context.runtime.group, context)
    context.runtime.group.barrier()  # until it is written
    return teacher


def _log_start(context: RunContext, model: MultiExpert) -> None:
    config, dataset, group = context.config, context.dataset, context.runtime.group
    counts = dataset.class_counts
    each = f"{max(counts):,}" if max(counts) == min(counts) else f"{max(counts):,} to {min(counts):,}"
    processes = f", {group.size} processes" if group.size > 1 else ""
    logger.info(
        f"{config.name}: {len(dataset.train):,} training images in {dataset.num_classes} classes "
        f"({each} each), {pluralize(len(dataset.test), 'test image')}"
    )
    logger.info("Classes: %s", shortened_list(dataset.class_names, 5))
    logger.info(
        f"{config.model.backbone}, {pluralize(model.num_experts, 'expert')}, {model.num_parameters:,} parameters, "
        f"{pluralize(config.training.epochs, 'epoch')} on {context.runtime.device}{processes}, run folder "
        f"{context.run.folder}"
    )


# ---- opening what is there ----


def _context(
    run: Run, config: Config, group: Group, signals: Signals, skipped: list[CorruptImage] | None = None
) -> RunContext:
    device = pick_device(config.device)
    if skipped is None:
        skipped = run.skipped()
    with group.main_first():  # it may download the data
        dataset = load_data(config.data, skipped or ())
    if skipped is None and config.data.on_corrupt_image == "skip":
        skipped = _on_main(group, lambda: find_corrupt_images(config.data, dataset))
        dataset = without(dataset, skipped, Path(config.data.root))
    runtime = Runtime(device, config.training.precision, group)
    warn_slow_precision(device, config.training.precision)
    return RunContext(run, config, dataset, runtime, signals, skipped)


def _make_plan(context: RunContext, is_teacher: bool) -> tuple[RunContext, "_Plan"]:
    """Returns the plan of a training, and its context without the validation and test images that do not decode.

    Images that are decoded once are so while the plan is made. They are examined only if one of them does not decode.

    Raises:
        InputError: training images do not decode; all that are known are listed.
    """
    examined = is_teacher or context.config.data.on_corrupt_image == "skip"
    if context.decodes_repeatedly and not examined:
        context = _without_corrupt_test_images(context, in_full=False)
    try:
        return context, _Plan(context)
    except CorruptImagesError:
        context = _without_corrupt_test_images(context, in_full=True)
        return context, _Plan(context)


def _without_corrupt_test_images(context: RunContext, in_full: bool) -> RunContext:
    data, dataset = context.config.data, context.dataset
    corrupt = _on_main(context.runtime.group, lambda: find_corrupt_test_images(data, dataset, in_full))
    if not corrupt:
        return context
    skipped = [*(context.skipped or ()), *corrupt]
    return replace(context, dataset=without(dataset, corrupt, Path(data.root)), skipped=skipped)


def _on_main(group: Group, find: Callable[[], list[CorruptImage]]) -> list[CorruptImage]:
    """Returns the images that the first process finds."""
    text = group.broadcast_object(os.fsdecode(to_text(find() if group.is_main else [])))
    return from_text(os.fsencode(text), Path(SKIPPED_FILE))


def _open(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else open_run(run)


class _OpenedModel(NamedTuple):
    """A trained run that no other process writes to."""

    context: RunContext
    model: MultiExpert
    """On the device, with the average that the settings ask for"""
    metadata: ModelMetadata
    loaders: dict[SplitName, Loader]

    @property
    def average_changed(self) -> bool:
        """Whether the settings ask for another average than the run's."""
        return self.model.average != self.context.run.config.evaluation.average

    @property
    def temperature_changed(self) -> bool:
        """Whether the settings ask for another temperature than the run's or the model's."""
        setting = self.context.config.evaluation.temperature
        return setting != self.context.run.config.evaluation.temperature or setting not in (
            None,
            self.model.temperature,
        )


@contextmanager
def _opened_model(run: Run, config: Config) -> Iterator[_OpenedModel]:
    signals = Signals(GRACE)
    with init_distributed(config.device) as group, signals.caught(), ExitStack() as stack:
        run.writes = group.is_main
        stack.enter_context(run.lock())
        context = _context(run, config, group, signals)
        stack.enter_context(context.runtime.tf32(config.training.tf32))
        model, metadata = run.load_model()
        metadata = _check_match(metadata, context)
        for name in KEPT_IN_MODEL:
            setting, current = getattr(config.evaluation, name), getattr(run.config.evaluation, name)
            if setting != current and not run.is_finished and not run.is_converted:
                raise InputError(
                    f"{run.folder} is not finished, and its evaluation.{name} is {current}; it can be changed after "
                    f"training. Finish it with: longtail train --resume {run.folder}"
                )
        if config.evaluation.average != model.average:
            model.average = config.evaluation.average
            metadata = replace(metadata, threshold_for="")  # it was chosen for another average
        if context.skipped is not None:
            run.write_skipped(context.skipped)
        yield _OpenedModel(context, context.to_device(model), metadata, eval_loaders(context))


def _finish(
    opened: _OpenedModel, metadata: ModelMetadata, split: SplitName = "test", *, choose_temperature: bool = True
) -> EvaluationResults:
    """Evaluates a model, and writes and shows its results. The run keeps the settings that the model keeps."""
    context, run = opened.context, opened.context.run
    if opened.average_changed:
        run.remove(*ADJUSTED_RESULTS)  # of another average
    kept = {name: getattr(context.config.evaluation, name) for name in KEPT_IN_MODEL}
    config = replace(run.config, evaluation=replace(run.config.evaluation, **kept))
    if config != run.config:
        run.write_config(config)
    results = _evaluate(context, opened.model, metadata, opened.loaders, choose_temperature)
    log_results(context, results, split)
    return results


def _evaluate(
    context: RunContext,
    model: MultiExpert,
    metadata: ModelMetadata,
    loaders: Mapping[SplitName, Loader],
    choose_temperature: bool,
) -> EvaluationResults:
    """Evaluates a model and writes its results; first chooses its temperature, if asked for, and saves it."""
    outputs = {split: collect_outputs(model, loader, context.runtime.group) for split, loader in loaders.items()}
    if choose_temperature:
        outputs = set_temperature(model, outputs, context.config.evaluation.temperature)
        context.run.save_model(model, metadata)
    results = evaluate_splits(context, model, metadata, loaders, outputs)
    write_results(context, results, metadata)
    return results


# ---- checks before anything is computed ----


def _check_threshold_goal(
    compute_budget: float | str | None, max_accuracy_drop: float | None, loaders: Mapping[SplitName, Loader]
) -> None:
    """Checks that a threshold can be chosen for the goal."""
    if compute_budget is None and max_accuracy_drop is None:
        return
    _check_goal_values(compute_budget, max_accuracy_drop)
    if "val" not in loaders:
        raise InputError(
            "the router's threshold is chosen on validation images, and there are none. Train with data.val_fraction, "
            "or data.val_spare if the long tail is made from a larger set; or choose no threshold: "
            "router.max_accuracy_drop and router.compute_budget null"
        )


def _check_goal_values(compute_budget: float | str | None, max_accuracy_drop: float | None) -> None:
    if compute_budget is not None:
        parse_budget(str(compute_budget))
    if max_accuracy_drop is not None and not 0 <= max_accuracy_drop <= 100:
        raise InputError(f"max_accuracy_drop is {max_accuracy_drop:g}; it must be from 0 to 100 points")


def _check_tau(config: Config, loaders: Mapping[SplitName, Loader]) -> None:
    if config.classifier.method == "tau" and config.classifier.tau is None and "val" not in loaders:
        raise InputError(
            "tau is chosen on validation images, and there are none. Train with data.val_fraction, or data.val_spare "
            "if the long tail is made from a larger set; or set it: classifier.tau 1"
        )


def _check_budget(
    compute_budget: float | str | None, model: MultiExpert, metadata: ModelMetadata, num_views: int
) -> None:
    if compute_budget is None:
        return
    budget, first = parse_budget(str(compute_budget)), cost(model, metadata.image_size).times(num_views).prefix(1)
    if budget.amount < (first if budget.unit == "MACs" else 1):
        raise InputError(
            f"router.compute_budget is {compute_budget}, less than the first expert's cost, {macs(first)} MACs"
        )


def _check_match(trained: ModelMetadata, context: RunContext) -> ModelMetadata:
    """Checks that data and settings are those of a trained model; adds to its metadata what a conversion lacks."""
    run, config, current = context.run, context.config, context.new_metadata()
    if not trained.class_counts and len(current.class_names) == len(trained.class_names):  # converted
        trained = replace(trained, class_names=current.class_names, class_counts=current.class_counts)
    if trained.class_names != current.class_names:
        raise InputError(f"{run.folder}: was trained on other classes than those of data set '{config.data.name}'")
    if trained.training_images and trained.training_images != current.training_images:
        raise InputError(
            f"{run.folder}: the training images of data set '{config.data.name}' are not those of the training (added, "
            "removed or split differently), so some might be test images now; put the files back as they were"
        )
    ours, theirs = asdict(current), asdict(trained)
    # Earlier versions wrote fewer arguments.
    common = ours["architecture"].keys() & theirs["architecture"].keys()
    if trained.classifier:
        common -= {"head", "scale"}
    for side in (ours, theirs):
        side["architecture"] = {name: side["architecture"][name] for name in sorted(common)}
    differing = [
        f"'{label}': {now:,} instead of {then:,}"
        for label, now, then in zip(current.class_names, current.class_counts, trained.class_counts, strict=True)
        if now != then
    ]
    if differing:
        raise InputError(
            f"{run.folder}: data set '{config.data.name}' has other class_counts than the training: "
            f"{shortened_list(differing, 3)}; check data.imbalance, data.imbalance_factor and data.val_fraction"
        )
    for name in ("architecture", "image_size", "resize", "mean", "std", "interpolation"):
        if ours[name] != theirs[name]:
            raise InputError(
                f"{run.folder}: config.yaml asks for {name} {ours[name]}, but the model was trained with {theirs[name]}"
            )
    return trained
