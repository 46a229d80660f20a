"""The whole way: from a `Config` to a trained, tested and described run; and to test a run again."""

import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from rich.progress import track

from longtail.config.recipes import config_fingerprint
from longtail.config.schema import Config
from longtail.data import build as data_build
from longtail.data.corrupt_images import SKIPPED_FILE, CorruptImage, from_text, to_text
from longtail.data.loaders import Loader
from longtail.data.splits import Dataset
from longtail.evaluation.evaluator import Part, eval_loaders, evaluate_splits, log_results
from longtail.evaluation.flops import cost
from longtail.evaluation.label_shift.evaluators import LabelShiftTest, PriorTest
from longtail.evaluation.metrics import Evaluation
from longtail.evaluation.outputs import collect_outputs
from longtail.evaluation.routing import macs, parse_budget
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata, set_average
from longtail.runs.run import Run, new_run
from longtail.runtime.device import Runtime, environment, pick_device
from longtail.runtime.distributed import Group, init_distributed
from longtail.runtime.process import Signals, Stopped
from longtail.training.decoupled import train_classifier
from longtail.training.experts import Experts
from longtail.training.progress import say
from longtail.training.router import set_threshold, train_router
from longtail.training.teacher import check_planned, find_teacher, load_teacher
from longtail.utils.errors import InputError
from longtail.utils.format import pluralize

Skipped = list[CorruptImage] | None
"""Images that were left out because they do not decode; None where nobody looked"""


def train(config: Config, output: str | Path | None = None, console: Console | None = None) -> Run:
    """Trains, tests and describes a model.

    The weights of every complete epoch replace those of the one before, so that a run that is interrupted can be
    used; the last epoch is the result, whatever the validation images say.

    Args:
        config: the settings, see `longtail.load_recipe`.
        output: folder of the run; a new one below runs/ by default. A run with the same settings that is in it already
            is gone on with, so that a scheduler can start the same command again; if it is finished it is returned.
        console: where to tell how it goes; nowhere by default.

    Raises:
        InputError: settings, data or machine do not allow it, and nothing is left behind; or training diverged.
        Stopped: a signal asked for it; everything is saved.
    """
    with init_distributed(config.device) as group:
        if output is not None and _is_same(Run(output), config):
            known = Run(output, group.is_main)
            if not known.is_finished:
                return _train(known, config, console, group)
            if known.config.data.root != config.data.root:
                raise InputError(
                    f"'{output}' is finished, with data.root '{known.config.data.root}'; choose another --output"
                )
            if console is not None and group.is_main:
                say(console, f"{output} is finished, with these settings; longtail evaluate {output} tests it again")
            return known
        run = Run(
            group.broadcast_object(str(new_run(config.name, output).folder) if group.is_main else ""), group.is_main
        )
        return _train(run, config, console, group)


def resume(run: Run | str | Path, console: Console | None = None) -> Run:
    """Goes on with a run that was interrupted, exactly where it was saved last.

    Raises:
        InputError: as `train`; or there is no such run, or it is finished.
        Stopped: as `train`.
    """
    run = run if isinstance(run, Run) else Run(run)
    if not run.config_path.is_file():
        raise InputError(f"'{run.folder}' is not a run folder: it has no {run.config_path.name}")
    if run.is_converted:
        raise InputError(f"'{run.folder}' was converted, not trained here: there is nothing to go on with")
    if run.is_finished:
        raise InputError(f"'{run.folder}' is finished; 'longtail evaluate {run.folder}' tests it again")
    with init_distributed(run.config.device) as group:
        return _train(Run(run.folder, group.is_main), run.config, console, group)


def _is_same(run: Run, config: Config) -> bool:
    """Whether a run has these settings."""
    return (
        run.config_path.is_file()
        and not run.is_converted
        and config_fingerprint(run.config) == config_fingerprint(config)
    )


def _train(
    run: Run,
    config: Config,
    console: Console | None,
    group: Group,
    signals: Signals | None = None,
    skipped: Skipped = None,
) -> Run:
    begun, is_teacher = run.config_path.is_file(), signals is not None
    signals = signals or Signals()
    group.barrier()  # before anything is written that the others look for
    with signals.caught(), ExitStack() as stack:
        if begun:
            stack.enter_context(_resumable(run))
            stack.enter_context(run.lock())
        context = _workplace(run, config, console, group, signals, skipped)
        stack.enter_context(context.runtime.tf32(config.training.tf32))
        plan = _Plan(context)
        if not begun:
            stack.enter_context(run.lock())
            run.start(config, environment(context.runtime.device, group.size))
            stack.enter_context(_resumable(run))
        context.write_skipped()
        try:
            with _timed(run):
                model, metadata = plan.carry_out()
            results = evaluate_splits(context, model, metadata, plan.loaders)
        except KeyboardInterrupt:
            if not is_teacher:  # its student's run is what to go on with
                plan.log_interrupted()
            raise
        except BaseException:
            # Not where hours may have gone into something that can be gone on with.
            kept = run.model_path, run.checkpoint_path("experts"), run.teacher_folder
            if run.writes and not begun and not any(path.exists() for path in kept):
                run.discard()
            raise
    log_results(context.console, run, results, "test", config)
    return run


@contextmanager
def _resumable(run: Run) -> Iterator[None]:
    """Whatever interrupts what is within, the run can be gone on with."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Stopped(f"go on with: longtail train --resume {run.folder}") from error


class _Plan:
    """What is still to be done for a run. Making it finds whatever can be wrong, before hours of training."""

    def __init__(self, context: RunContext):
        self.context, config = context, context.config
        self.stage = "experts"
        begun = context.run.config_path.is_file()
        self.has_experts = begun and context.run.has_experts
        self.has_classifier = self.has_experts and context.run.has_classifier
        self.is_routed = self.has_classifier and context.run.is_routed
        self.experts = None if self.has_experts else Experts(context)
        self.loaders = eval_loaders(context)
        _check_classifier(config, self.loaders)
        if config.router.train:
            _check_choice(config.router.compute_budget, config.router.max_accuracy_drop, self.loaders)
        if self.experts is not None:
            _check_budget(config.router.compute_budget, self.experts.model, context.metadata())
        self.source = None if self.has_experts else find_teacher(config)
        if isinstance(self.source, Config):
            check_planned(self.source, context)
        self.teacher = load_teacher(self.source, context) if isinstance(self.source, Path) else None

    def carry_out(self) -> tuple[MultiExpert, ModelMetadata]:
        """Trains what is not trained yet; returns the model, on the device, with its description."""
        context, val_loader = self.context, self.loaders.get("val")
        if self.experts is None:
            model, metadata = context.run.load_model()
            metadata = _checked(metadata, context)
            context.on_device(model)
        else:
            if isinstance(self.source, Config):
                self.teacher = load_teacher(_trained_teacher(context, self.source).model_path, context)
            _announce(context, self.experts.model)
            metadata, model = self.experts.train(val_loader, self.teacher), self.experts.model
            self.experts = self.teacher = None  # and their images
        self.stage = "classifier"
        if context.config.classifier.method != "none" and not self.has_classifier:
            metadata = train_classifier(context, model, metadata, val_loader)
        self.stage = "router"
        if context.config.router.train and not self.is_routed:
            metadata = train_router(context, model, metadata, val_loader)
        self.stage = "test"
        context.run.remove_checkpoints()  # somebody may have been killed before doing so
        return model, metadata

    def log_interrupted(self) -> None:
        """How far it came, and how to go on."""
        run, epochs = self.context.run, self.context.config.training.epochs
        resumed = f"go on with: longtail train --resume {run.folder}"
        if self.stage == "test":
            holds = "the trained model"
        elif self.stage == "classifier":
            holds = "the experts with their own classifiers"
        elif self.stage == "router":
            holds = "the experts without a router"
        elif run.model_path.exists():
            done = run.epochs_done
            holds = f"the model after epoch {done} of {epochs}" if done else f"the model in epoch 1 of {epochs}"
            resumed += f"; test it with: longtail evaluate {run.folder}"
        else:
            self.context.say(f"Stopped before the experts' training; {resumed}")
            return
        self.context.say(f"Stopped. {run.folder} holds {holds}; {resumed}")


def _workplace(
    run: Run, config: Config, console: Console | None, group: Group, signals: Signals, skipped: Skipped = None
) -> RunContext:
    device = pick_device(config.device)
    if console is None or not group.is_main:
        console = Console(quiet=True)
    if skipped is None:
        skipped = run.skipped()
    with group.main_first():  # it may download them
        dataset = data_build.load_data(config, skipped or ())
    if skipped is None and config.data.on_corrupt_image == "skip":
        skipped = _corrupt_images(config, dataset, console, group)
        dataset = data_build.load_data(config, skipped)
    runtime = Runtime(device, config.training.precision, group)
    return RunContext(run, config, dataset, runtime, console, signals, skipped)


def _corrupt_images(config: Config, dataset: Dataset, console: Console, group: Group) -> list[CorruptImage]:
    """What the first process finds, for all."""

    def watch(walk: Iterable[CorruptImage | None], total: int) -> Iterable[CorruptImage | None]:
        return track(walk, "checking images", total=total, console=console, transient=True, disable=not total)

    found = data_build.find_corrupt_images(config, dataset, watch) if group.is_main else []
    if found:
        say(console, f"{pluralize(len(found), 'image does', 'images do')} not decode: skipped, see {SKIPPED_FILE}")
    return from_text(os.fsencode(group.broadcast_object(os.fsdecode(to_text(found)))), Path(SKIPPED_FILE))


@contextmanager
def _timed(run: Run) -> Iterator[None]:
    """Adds the time to what the run's training has taken so far."""
    start = time.perf_counter()
    try:
        yield
    finally:
        known = run.environment()
        seconds = known.get("training_seconds", 0.0) + time.perf_counter() - start
        run.write_json("environment.json", known | {"training_seconds": seconds})


def _trained_teacher(context: RunContext, config: Config) -> Run:
    """The teacher's own run within the student's, trained as far as it is not yet."""
    teacher = Run(context.run.teacher_folder, context.run.writes)
    if teacher.is_finished and config_fingerprint(teacher.config) != config_fingerprint(config):
        raise InputError(
            f"{teacher.folder} was trained with other settings than teacher '{context.config.teacher}' now has; "
            "take back what was changed there, or remove that folder to train it again"
        )
    if not teacher.is_finished:
        _train(teacher, config, context.console, context.runtime.group, context.signals, context.skipped)
    context.runtime.group.barrier()  # until it is written
    return teacher


def evaluate(
    run: Run | str | Path,
    split: Part = "test",
    *,
    config: Config | None = None,
    device: str = "auto",
    compute_budget: float | str | None = None,
    max_accuracy_drop: float | None = None,
    prior: str | Path | None = None,
    label_shift: bool = False,
    console: Console | None = None,
) -> Evaluation:
    """Tests a run, and writes its results.json, report.md and plots anew.

    Args:
        run: a run or its folder, also of an interrupted run.
        split: the part whose result is returned. Test and, where there is one, validation results are written.
        config: the run's own by default; another one may say where the data are now, how to count, or what of the
            experts is averaged (evaluation.average). The run keeps the latter, so that its model predicts likewise.
        device: where to.
        compute_budget: choose the router's threshold anew on the validation images, and keep it with the model: the
            best for this mean cost, 1.2 times that of one expert, or "70M" multiply-accumulates.
        max_accuracy_drop: likewise: the cheapest that loses at most so many percentage points of balanced accuracy.
        prior: also tell how accurate the experts are if they know how common each class is among the images: a file,
            see `longtail.evaluation.label_shift.priors.read_prior`, or "uniform". Written to prior.json.
        label_shift: also tell how accurate they are where classes are as common as in training, less so, or the other
            way round, see `longtail.evaluation.label_shift.report`. Written to label_shift.json and label_shift.md.
        console: where to print the results; nowhere by default.

    Raises:
        InputError: no such run; another process has it; its data are not there, have changed, or have no such part; or
            the settings are not those the model was trained with.
    """
    run = _opened(run)
    config = replace(config or run.config, device=device)
    with _at(run, config, console) as (context, model, metadata, loaders):
        if split not in loaders:
            raise InputError(f"data set '{config.data.name}' has no part '{split}'; there is {' and '.join(loaders)}")
        with_prior = None if prior is None else PriorTest(context, metadata, split, prior)
        shifted = LabelShiftTest(context, metadata, split) if label_shift else None
        if compute_budget is not None or max_accuracy_drop is not None:
            if model.router is None:
                raise InputError(
                    f"{context.run.folder} has no router to choose a threshold for; 'longtail router' trains one"
                )
            _check_choice(compute_budget, max_accuracy_drop, loaders)
            given = collect_outputs(model, loaders["val"], context.runtime.group)
            metadata = set_threshold(model, metadata, given, compute_budget, max_accuracy_drop)
            context.run.save_model(model, metadata)
        elif model.average != run.average:
            context.run.save_model(model, metadata)
            if model.router is not None:
                context.say(
                    f"The router and its threshold stay as they were, and the experts' {model.average} are averaged; "
                    f"train it for that with: longtail router {run.folder}"
                )
        _keep_average(run, config)
        results = evaluate_splits(context, model, metadata, loaders)
        log_results(context.console, context.run, results, split, config)
        if with_prior is not None:
            with_prior.tell(results.given[split])
        if shifted is not None:
            shifted.tell(model, results.given[split])
    return results.evaluations[split]


def add_router(run: Run | str | Path, *, config: Config | None = None, console: Console | None = None) -> Run:
    """Trains a router for a finished run or a converted checkpoint, tests it, and replaces any earlier one.

    Args:
        run: a run or its folder.
        config: the run's own by default; another one may have other settings in its section router.
        console: where to tell how it goes; nowhere by default.

    Raises:
        InputError: as `evaluate`; or the model has a single expert.
        Stopped: a signal asked for it; the same again goes on from there.
    """
    run = _opened(run)
    config = config or run.config
    if config.model.num_experts > 1:
        config = replace(config, router=replace(config.router, train=True))
    with _at(run, config, console) as (context, model, metadata, loaders):
        if model.num_experts == 1:
            raise InputError(f"{run.folder} has one expert; a router chooses among several")
        _check_choice(config.router.compute_budget, config.router.max_accuracy_drop, loaders)
        try:
            metadata = train_router(context, model, metadata, loaders.get("val"))
        except KeyboardInterrupt as error:
            context.say(f"Stopped. {run.folder} is as it was; the same command goes on where this one stopped")
            raise Stopped from error
        # The rest is how its experts were trained.
        context.run.write_config(replace(run.config, router=config.router))
        _keep_average(run, config)
        log_results(context.console, run, evaluate_splits(context, model, metadata, loaders), "test", config)
    return run


def retrain_classifier(run: Run | str | Path, *, config: Config | None = None, console: Console | None = None) -> Run:
    """Gives the experts of a finished run or a converted checkpoint other classifiers, and tests it.

    They are made from the experts' own, which the run keeps, whatever it has now; with method none it gets them back. A
    router was trained on the answers of other classifiers: where the run has one, it is trained anew.

    Args:
        run: a run or its folder.
        config: the run's own by default; another one may have other settings in its section classifier.
        console: where to tell how it goes; nowhere by default.

    Raises:
        InputError: as `evaluate`; or there are no validation images to choose tau on, or nothing would change.
        Stopped: a signal asked for it; the same again goes on from there.
    """
    run = _opened(run)
    config = config or run.config
    with _at(run, config, console) as (context, model, metadata, loaders):
        if config.classifier.method == "none" and not metadata.classifier:
            raise InputError(
                f"{run.folder} has the experts' own classifiers, which is what classifier.method 'none' asks for; "
                "retrain, scale, tau and nearest-mean make others"
            )
        _check_classifier(config, loaders)
        routed = model.router is not None
        holds = "is as it was; the same command goes on where this one stopped"
        if routed:
            _check_choice(config.router.compute_budget, config.router.max_accuracy_drop, loaders)
        try:
            metadata = train_classifier(context, model, metadata, loaders.get("val"))
            context.run.write_config(replace(run.config, classifier=config.classifier))
            _keep_average(run, config)
            holds = f"has its new classifiers, but no router; go on with: longtail router {run.folder}"
            if routed:
                metadata = train_router(context, model, metadata, loaders.get("val"))
        except KeyboardInterrupt as error:
            context.say(f"Stopped. {run.folder} {holds}")
            raise Stopped from error
        log_results(context.console, run, evaluate_splits(context, model, metadata, loaders), "test", config)
    return run


def _opened(run: Run | str | Path) -> Run:
    return run if isinstance(run, Run) else Run.open(run)


@contextmanager
def _at(
    run: Run, config: Config, console: Console | None
) -> Iterator[tuple[RunContext, MultiExpert, ModelMetadata, dict[Part, Loader]]]:
    """A trained run that nobody else writes to: its model on the device, its description, and its images."""
    signals = Signals()
    with init_distributed(config.device) as group, signals.caught(), ExitStack() as stack:
        run.writes = group.is_main
        stack.enter_context(run.lock())
        context = _workplace(run, config, console, group, signals)
        stack.enter_context(context.runtime.tf32(config.training.tf32))
        model, metadata = run.load_model()
        metadata = _checked(metadata, context)
        if config.evaluation.average != model.average and not run.is_finished and not run.is_converted:
            raise InputError(
                f"{run.folder} is not finished, and averages the experts' {model.average}; evaluation.average can be "
                f"changed afterwards. Finish it with: longtail train --resume {run.folder}"
            )
        metadata = set_average(model, metadata, config.evaluation.average)
        context.write_skipped()
        loaders = eval_loaders(context)
        yield context, context.on_device(model), metadata, loaders


def _keep_average(run: Run, config: Config) -> None:
    """What the run's model averages becomes the run's setting; what was said of other answers goes."""
    average, known = config.evaluation.average, run.config
    if known.evaluation.average != average:
        for name in ("prior.json", "label_shift.json", "label_shift.md"):
            run.remove(name)
        run.write_config(replace(known, evaluation=replace(known.evaluation, average=average)))


def _check_choice(
    compute_budget: float | str | None, max_accuracy_drop: float | None, loaders: Mapping[Part, Loader]
) -> None:
    """A threshold is chosen on validation images or not at all; and what cannot be read is found early."""
    if compute_budget is None and max_accuracy_drop is None:
        return
    if compute_budget is not None:
        parse_budget(str(compute_budget))
    if max_accuracy_drop is not None and not 0 <= max_accuracy_drop <= 100:
        raise InputError(f"the largest drop of accuracy is {max_accuracy_drop:g}; it must be from 0 to 100 points")
    if "val" not in loaders:
        raise InputError(
            "there are no validation images to choose the router's threshold on. Training with data.val_fraction holds "
            "some out; where a long tail is made of a larger set, data.val_spare takes some of what it leaves out. Or "
            "choose none: router.max_accuracy_drop and router.compute_budget null"
        )


def _check_classifier(config: Config, loaders: Mapping[Part, Loader]) -> None:
    """Tau is chosen on validation images or given."""
    if config.classifier.method == "tau" and config.classifier.tau is None and "val" not in loaders:
        raise InputError(
            "there are no validation images to choose tau on. Training with data.val_fraction holds some out; where a "
            "long tail is made of a larger set, data.val_spare takes some of what it leaves out. Or give it: "
            "classifier.tau 1"
        )


def _check_budget(compute_budget: float | str | None, model: MultiExpert, metadata: ModelMetadata) -> None:
    if compute_budget is None:
        return
    budget, first = parse_budget(str(compute_budget)), cost(model, metadata.image_size).prefix(1)
    if budget.amount < (first if budget.unit == "MACs" else 1):
        raise InputError(
            f"router.compute_budget is {compute_budget}: below the first expert's cost, {macs(first)} MACs"
        )


def _checked(trained: ModelMetadata, context: RunContext) -> ModelMetadata:
    """The description of a model with what its data tell; refuses data and settings that are not its own."""
    run, config, now = context.run, context.config, context.metadata()
    if not trained.class_counts and len(now.class_names) == len(trained.class_names):  # converted: its data tell
        trained = replace(trained, class_names=now.class_names, class_counts=now.class_counts)
    if trained.class_names != now.class_names:
        raise InputError(f"{run.folder}: was trained on other classes than those of data set '{config.data.name}'")
    if trained.training_images and trained.training_images != now.training_images:
        raise InputError(
            f"{run.folder}: the training images of data set '{config.data.name}' are not those the model was trained "
            "on (added, removed or split differently), so test images might be among the latter; train again"
        )
    was, fields = asdict(trained), asdict(now)
    # Not a router, which is added later; and nothing that files of earlier versions do not speak of.
    common = {name for name in was["architecture"] if name in fields["architecture"]}
    if trained.classifier:
        common -= {"head", "scale"}
    for side in (was, fields):
        side["architecture"] = {name: side["architecture"][name] for name in common}
    for name, value in fields.items():
        if name not in ("epoch", "training_images", "classifier", "threshold_for") and value != was[name]:
            raise InputError(
                f"{run.folder}: config.yaml makes {name} {value}, but the model was trained with {was[name]}"
            )
    return trained


def _announce(context: RunContext, model: MultiExpert) -> None:
    config, dataset, group = context.config, context.dataset, context.runtime.group
    counts = dataset.class_counts
    together = f", {group.size} processes" if group.size > 1 else ""
    context.say(
        f"{config.name}: {len(dataset.train):,} training images in {dataset.num_classes} classes "
        f"({max(counts):,} to {min(counts):,} each), {len(dataset.test):,} test images\n"
        f"{config.model.backbone}, {pluralize(model.num_experts, 'expert', 'experts')}, "
        f"{model.num_parameters:,} parameters, "
        f"{config.training.epochs} epochs on {context.runtime.device}{together}, into {context.run.folder}",
    )
