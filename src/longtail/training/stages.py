"""The training of a run, stage by stage: its teacher, the experts, the classifiers, the router, the evaluation."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from longtail.config.recipes import config_fingerprint
from longtail.config.schema import Config
from longtail.data.copies import log_copies
from longtail.data.memory_cache import CorruptImagesError
from longtail.data.views import NUM_VIEWS
from longtail.models.multi_expert import MultiExpert
from longtail.reports.results import evaluate_and_write, log_results
from longtail.runs.context import RunContext, open_context, without_corrupt_test_images
from longtail.runs.model_file import ModelMetadata
from longtail.runs.opened_model import check_match
from longtail.runs.run import Run
from longtail.runs.tracking import tracking
from longtail.runtime.device import environment
from longtail.runtime.distributed import Group
from longtail.runtime.process import GRACE, Signals, Stopped
from longtail.tracking.trackers import Trackers
from longtail.training.checks import check_budget, check_tau, check_threshold_goal
from longtail.training.decoupled import train_classifier
from longtail.training.experts import ExpertStage
from longtail.training.frozen_stage import save_stages
from longtail.training.router import train_router
from longtail.training.teacher import check_recipe, find_teacher, load_teacher
from longtail.utils.errors import InputError
from longtail.utils.format import pluralize, shortened_list

logger = logging.getLogger(__name__)


def train_run(run: Run, config: Config, group: Group, student: RunContext | None = None) -> Run:
    """Trains a run as far as it is not trained; ``student`` is the run whose teacher it is."""
    is_started = run.config_path.is_file()
    trackers = Trackers(config.track, is_active=run.writes)
    signals = Signals(GRACE) if student is None else student.signals
    group.barrier()  # before anything is written that the others look for
    with signals.caught(), ExitStack() as stack:
        if is_started:
            stack.enter_context(_stops_resumably(run))
            stack.enter_context(run.lock())
        context = open_context(run, config, group, signals, None if student is None else student.skipped)
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
            with tracking(run, config, trackers):
                with _timed(run):
                    model, metadata = plan.run()
                results = evaluate_and_write(context, model, metadata, plan.loaders, choose_temperature=True)
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
        self.loaders = context.eval_loaders()
        check_tau(config.classifier, self.loaders)
        if config.router.train:
            check_threshold_goal(config.router, self.loaders)
        if self.experts is not None:
            views = NUM_VIEWS[config.evaluation.views]
            check_budget(config.router.compute_budget, self.experts.model, self.experts.metadata, views)
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
            metadata = check_match(metadata, context)
            model.average = config.evaluation.average  # a killed evaluation may have changed only the settings
            context.to_device(model)
        else:
            if isinstance(self.source, Config):
                self.teacher = load_teacher(_train_teacher(context, self.source).model_path, context)
            _log_start(context, self.experts.model)
            with context.runtime.group.main_first():  # of a million files, it takes longer than a step may
                if context.runtime.group.is_main:
                    log_copies(context.dataset, Path(config.data.root), context.loaders.decoded)
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
        environment = run.environment()
        seconds = environment.get("training_seconds", 0.0) + time.perf_counter() - start
        run.write_json("environment.json", environment | {"training_seconds": seconds})


def _train_teacher(context: RunContext, config: Config) -> Run:
    """Trains the teacher's run, in a folder of the student's run, as far as it is not trained."""
    teacher = Run(context.run.teacher_folder, context.run.writes)
    if teacher.is_finished and config_fingerprint(teacher.config) != config_fingerprint(config):
        raise InputError(
            f"{teacher.folder} was trained with other settings than teacher '{context.config.teacher}' has now; "
            "restore these, or remove the folder to train the teacher again"
        )
    if not teacher.is_finished:
        train_run(teacher, config, context.runtime.group, context)
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


def _make_plan(context: RunContext, is_teacher: bool) -> tuple[RunContext, _Plan]:
    """Returns the plan of a training, and its context without the validation and test images that do not decode.

    Images that are decoded once are so while the plan is made. They are examined only if one of them does not decode.

    Raises:
        InputError: training images do not decode; all that are known are listed.
    """
    examined = is_teacher or context.config.data.on_corrupt_image == "skip"
    if context.loaders.decodes_repeatedly and not examined:
        context = without_corrupt_test_images(context, in_full=False)
    try:
        return context, _Plan(context)
    except CorruptImagesError:
        context = without_corrupt_test_images(context, in_full=True)
        return context, _Plan(context)
