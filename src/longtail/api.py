"""What Python and the command line share: train, resume, evaluate, add a router, retrain the classifier, report."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from longtail.config.recipes import checked_types, config_fingerprint
from longtail.config.schema import Config
from longtail.evaluation.label_shift.evaluators import LabelShiftTest, PriorTest
from longtail.evaluation.metrics import Evaluation
from longtail.evaluation.outputs import collect_outputs
from longtail.evaluation.routing import parse_budget
from longtail.reports.html.compare import ComparedRun, check_comparable, write_comparison
from longtail.reports.html.page import HTML_FILE, write_html
from longtail.reports.results import evaluate_and_write, log_results, report_label_shift, report_prior_test
from longtail.reports.saved import evaluated_images, load_report
from longtail.runs.context import EvalSplit
from longtail.runs.opened_model import OpenedModel, open_model
from longtail.runs.pulled import as_run
from longtail.runs.run import Run, new_run
from longtail.runtime.distributed import init_distributed
from longtail.runtime.process import Stopped
from longtail.training.checks import check_tau, check_threshold_goal
from longtail.training.decoupled import train_classifier
from longtail.training.frozen_stage import TrainedStage, save_stages
from longtail.training.router import set_threshold, train_router
from longtail.training.stages import train_run
from longtail.utils.errors import InputError

logger = logging.getLogger(__name__)


def train(config: Config, output: str | Path | None = None) -> Run:
    """Trains and evaluates a model, and writes a run folder.

    After each epoch the run holds a model that can be used. The last epoch is the result or, with early stopping
    (training.patience), the one with the best balanced accuracy on the validation images.

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
                return train_run(run, config, group)
            if run.config.data.root != config.data.root:
                raise InputError(
                    f"'{output}' is finished, with data.root '{run.config.data.root}'; choose another --output"
                )
            logger.info("%s is finished, with these settings; longtail evaluate %s evaluates it again", output, output)
            return run
        folder = group.broadcast_object(str(new_run(config.name, output).folder) if group.is_main else "")
        return train_run(Run(folder, group.is_main), config, group)


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
        return train_run(Run(run.folder, group.is_main), run.config, group)


def _has_settings(run: Run, config: Config) -> bool:
    """Whether a run was started with these settings."""
    if not run.config_path.is_file() or run.is_converted:
        return False
    return config_fingerprint(run.config) == config_fingerprint(config)


def evaluate(
    run: Run | str | Path,
    split: EvalSplit = "test",
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
    run, config = _with_settings(run, config)
    if fit_temperature:
        config = replace(config, evaluation=replace(config.evaluation, temperature=None))
    goal = replace(config.router, compute_budget=compute_budget, max_accuracy_drop=max_accuracy_drop)
    if compute_budget is not None:
        parse_budget(str(compute_budget))  # before data and model are read
    with open_model(run, config) as opened:
        context, model, metadata, loaders, _ = opened
        if fit_temperature and "val" not in loaders:
            raise InputError(
                f"the temperature is chosen on validation images, and '{config.data.name}' has none here; it can be "
                "set: evaluation.temperature"
            )
        if split not in loaders:
            raise InputError(f"data set '{config.data.name}' has no split '{split}', only {' and '.join(loaders)}")
        prior_test = None if prior is None else PriorTest(context, metadata, split, prior)
        shift_test = LabelShiftTest(context, metadata, split) if label_shift else None
        if goal.has_goal:
            if model.router is None:
                advice = "; 'longtail router' trains one" if model.num_experts > 1 else ", because it has one expert"
                raise InputError(f"{run.folder} has no router{advice}")
            check_threshold_goal(goal, loaders)
            outputs = collect_outputs(model, loaders["val"], context.runtime.group)
            metadata = set_threshold(model, metadata, outputs, goal)
        is_changed = goal.has_goal or opened.average_changed
        if is_changed:
            fit_temperature |= model.temperature != 1
            if not goal.has_goal and model.router is not None:
                logger.info(
                    "The experts' %s are averaged now. Router and threshold are unchanged; to train them for it: "
                    "longtail router %s",
                    model.average,
                    run.folder,
                )
        choose_temperature = fit_temperature or opened.temperature_changed
        before = opened.keep_settings if is_changed or choose_temperature else None
        results = evaluate_and_write(context, model, metadata, loaders, choose_temperature, before)
        log_results(context, results, split)
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
    run, config = _with_settings(run, config)
    if config.model.num_experts > 1:
        config = replace(config, router=replace(config.router, train=True))
    with open_model(run, config) as opened:
        context, model, metadata, loaders, _ = opened
        if model.num_experts == 1:
            raise InputError(f"{run.folder} has one expert; a router needs several")
        check_threshold_goal(config.router, loaders)
        with _stops_unchanged(run):
            router = train_router(context, model, metadata, loaders.get("val"))
        _replace_stages(opened, router=router)
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
    run, config = _with_settings(run, config)
    with open_model(run, config) as opened:
        context, model, metadata, loaders, _ = opened
        restores = config.classifier.method == "none"
        if restores and not metadata.classifier and not run.heads_path.exists():
            raise InputError(
                f"{run.folder} has its experts' own classifiers; --classifier.method retrain, scale, tau and "
                "nearest-mean are others"
            )
        check_tau(config.classifier, loaders)
        is_routed = model.router is not None
        if is_routed:
            check_threshold_goal(config.router, loaders)
        with _stops_unchanged(run):
            stages = {"classifier": train_classifier(context, model, metadata, loaders.get("val"))}
            if is_routed:
                stages["router"] = train_router(context, model, stages["classifier"].metadata, loaders.get("val"))
        _replace_stages(opened, **stages)
        if restores:  # last: without them the command has nothing to do
            run.remove("classifier.json", run.heads_path.name)
    return run


def _with_settings(run: Run | str | Path, config: Config | None) -> tuple[Run, Config]:
    """Returns a run, and the settings or those of the run."""
    run = as_run(run)
    return run, checked_types(config or run.config)


@contextmanager
def _stops_unchanged(run: Run) -> Iterator[None]:
    """Turns an interrupt into `Stopped`: the run is as it was."""
    try:
        yield
    except KeyboardInterrupt as error:
        logger.info("Stopped. %s is unchanged; the same command resumes", run.folder)
        raise Stopped from error


def _replace_stages(opened: OpenedModel, **stages: TrainedStage) -> None:
    """Replaces the model of the run after these stages, and evaluates it."""
    context, model = opened.context, opened.model
    metadata = save_stages(context, model, **stages)
    opened.keep_settings()
    results = evaluate_and_write(context, model, metadata, opened.loaders, choose_temperature=True)
    log_results(context, results, "test")


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
    run, config = _with_settings(run, config)
    saved = load_report(run)
    if saved is None:
        _evaluate_first(run, config)
    else:
        content, outputs = saved
        content = replace(content, config=replace(content.config, data=config.data))
        with run.lock():
            write_html(run.folder, content, outputs, evaluated_images(run, config, outputs.test_images))
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
    for run in map(as_run, runs):
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
