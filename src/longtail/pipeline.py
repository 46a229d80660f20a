"""The whole way: from a `Config` to a trained, tested and described run; and to test a run again."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from longtail import build, tradeoff
from longtail.checkpoint import ModelCard, save_model
from longtail.config import Config
from longtail.data.loading import Loader
from longtail.data.soundness import SKIPPED_FILE, BadImage
from longtail.data.splits import Dataset
from longtail.errors import InputError
from longtail.evaluation import Answers, answers, evaluate_answers
from longtail.flops import cost
from longtail.metrics import Evaluation
from longtail.models.experts import MultiExpert
from longtail.report import counted, routing_summary, summary, write_report
from longtail.routing_report import RoutingReport
from longtail.run import Run, new_run
from longtail.runtime import environment, pick_device
from longtail.speed import Speed, images_per_second
from longtail.stages import Experts, Workplace, set_threshold, train_router
from longtail.teachers import check_planned, find_teacher, load_teacher
from longtail.tradeoff import macs, parse_budget

Part = Literal["val", "test"]

SPEED_BATCH, SPEED_IMAGES, SPEED_SECONDS = 64, 512, 0.5
"""How the speed of a routing is measured: images at a time, in all, and seconds for each number of experts."""


class Tested(NamedTuple):
    """What came of a test."""

    evaluations: dict[Part, Evaluation]
    routings: dict[Part, RoutingReport]
    """Empty for a model without a router"""


def train(config: Config, output: str | Path | None = None, console: Console | None = None) -> Run:
    """Trains, tests and describes a model.

    The weights of every complete epoch replace those of the one before, so that a run that is interrupted can be
    used; the last epoch is the result, whatever the validation images say.

    Args:
        config: the settings, see `longtail.recipe`.
        output: folder of the run; a new one below runs/ by default.
        console: where to tell how it goes; nowhere by default.

    Raises:
        InputError: settings, data or machine do not allow it, and nothing is left behind; or training diverged.
    """
    run = new_run(config.name, output)
    return _train(run, config, console or Console(quiet=True))


def _load_data(
    run: Run, config: Config, console: Console, skipped: list[BadImage] | None = None
) -> tuple[Dataset, list[BadImage] | None]:
    """The data without what is skipped, and the list of that where the run does not hold it yet."""
    known = run.skipped() if skipped is None else skipped
    if known is not None:
        return build.load_data(config, known), known
    dataset = build.load_data(config)
    if config.data.on_bad_image == "error":
        return dataset, None

    def watch(walk: Iterable[BadImage | None], total: int) -> Iterable[BadImage | None]:
        return track(walk, "checking images", total=total, console=console, transient=True, disable=not total)

    bad = build.find_bad_images(config, dataset, watch)
    if bad:
        _print(console, f"{counted(len(bad), 'image does', 'images do')} not decode: skipped, see {SKIPPED_FILE}")
    return build.load_data(config, bad), bad


def resume(run: Run | str | Path, console: Console | None = None) -> Run:
    """Goes on with a run that was interrupted: finished stages stay, an unfinished one begins anew.

    Raises:
        InputError: as `train`; or there is no such run, or it is finished.
    """
    run = run if isinstance(run, Run) else Run(run)
    if not run.config_path.is_file():
        raise InputError(f"'{run.folder}' is not a run folder: it has no {run.config_path.name}")
    if run.is_converted:
        raise InputError(f"'{run.folder}' was converted, not trained here: there is nothing to go on with")
    if run.is_finished:
        raise InputError(f"'{run.folder}' is finished; 'longtail evaluate {run.folder}' tests it again")
    return _train(run, run.config, console or Console(quiet=True), again=True)


def _train(
    run: Run, config: Config, console: Console, again: bool = False, skipped: list[BadImage] | None = None
) -> Run:
    device = pick_device(config.device)
    dataset, skipped = _load_data(run, config, console, skipped)
    place = Workplace(run, config, dataset, device, console)
    trained = again and run.epochs_done >= config.training.epochs
    # Whatever can be wrong is found here, before hours of training.
    experts = None if trained else Experts(place)
    tests = _eval_loaders(config, place.dataset, device)
    if config.router.train:
        _check_choice(config.router.compute_budget, config.router.max_accuracy_drop, tests)
    if experts is not None:
        _check_budget(config.router.compute_budget, experts.model, place.card())
    source = None if trained else find_teacher(config)
    if isinstance(source, Config):
        check_planned(source, place)
    teacher = load_teacher(source, place) if isinstance(source, Path) else None
    if not again:
        run.start(config, environment(device))
    if skipped is not None:
        run.write_skipped(skipped)
    start = time.perf_counter()
    stage = "experts"
    try:
        if isinstance(source, Config):
            teacher = load_teacher(_trained_teacher(run, source, console).model_path, place)
        if experts is None:
            model, card = run.load_model()
            place.on_device(model)
        else:
            _announce(console, place, experts.model)
            if again and run.epochs_done:
                _print(console, f"Training starts again: the {run.epochs_done} epochs done so far will be replaced")
            card, model = experts.train(tests.get("val"), teacher), experts.model
            del experts, teacher  # and their images
        if config.router.train and not (trained and run.is_routed):
            stage = "router"
            card = train_router(place, model, card, tests.get("val"))
        stage = "test"
        known = run.environment()
        seconds = known.get("training_seconds", 0.0) + time.perf_counter() - start
        run.write_json("environment.json", known | {"training_seconds": seconds})
        tested = _evaluate(place, model, card, tests)
    except KeyboardInterrupt:
        _tell_interrupted(console, run, config, stage)
        raise
    except BaseException:
        # Not where hours may have gone into a teacher: such a run can be resumed.
        if run.epochs_done == 0 and not again and not run.teacher_folder.exists():
            run.discard()
        raise
    print_results(console, run, tested, "test", config)
    return run


def _trained_teacher(run: Run, config: Config, console: Console) -> Run:
    """The teacher's own run within the student's, trained as far as it is not yet."""
    teacher = Run(run.teacher_folder)
    if teacher.is_finished:
        return teacher
    if teacher.config_path.is_file():
        return resume(teacher, console)
    return _train(new_run(config.name, teacher.folder), config, console, skipped=run.skipped())


def evaluate(
    run: Run | str | Path,
    split: Part = "test",
    *,
    config: Config | None = None,
    device: str = "auto",
    compute_budget: float | str | None = None,
    max_accuracy_drop: float | None = None,
    console: Console | None = None,
) -> Evaluation:
    """Tests a run, and writes its results.json, report.md and plots anew.

    Args:
        run: a run or its folder, also of an interrupted run.
        split: the part whose result is returned. Test and, where there is one, validation results are written.
        config: the run's own by default; another one may say where the data are now, or how to count.
        device: where to.
        compute_budget: choose the router's threshold anew on the validation images, and keep it with the model: the
            best for this mean cost, 1.2 times that of one expert, or "70M" multiply-accumulates.
        max_accuracy_drop: likewise: the cheapest that loses at most so many percentage points of balanced accuracy.
        console: where to print the results; nowhere by default.

    Raises:
        InputError: no such run; its data are not there, have changed, or have no such part; or the settings are not
            those the model was trained with.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    config = config or run.config
    on = pick_device(device)
    model, card = run.load_model()
    dataset, skipped = _load_data(run, config, console or Console(quiet=True))
    place = Workplace(run, config, dataset, on, Console(quiet=True))
    card = _checked(card, place)
    if skipped is not None:
        run.write_skipped(skipped)
    loaders = _eval_loaders(config, dataset, on)
    if split not in loaders:
        raise InputError(f"data set '{config.data.name}' has no part '{split}'; there is {' and '.join(loaders)}")
    place.on_device(model)
    if compute_budget is not None or max_accuracy_drop is not None:
        if model.router is None:
            raise InputError(f"{run.folder} has no router to choose a threshold for; 'longtail router' trains one")
        _check_choice(compute_budget, max_accuracy_drop, loaders)
        card = set_threshold(model, card, answers(model, loaders["val"]), compute_budget, max_accuracy_drop)
        save_model(run.model_path, model, card)
    tested = _evaluate(place, model, card, loaders)
    if console is not None:
        print_results(console, run, tested, split, config)
    return tested.evaluations[split]


def add_router(run: Run | str | Path, *, config: Config | None = None, console: Console | None = None) -> Run:
    """Trains a router for a finished run or a converted checkpoint, tests it, and replaces any earlier one.

    Args:
        run: a run or its folder.
        config: the run's own by default; another one may have other settings in its section router.
        console: where to tell how it goes; nowhere by default.

    Raises:
        InputError: as `evaluate`; or the model has a single expert.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    config = config or run.config
    if config.model.num_experts > 1:
        config = replace(config, router=replace(config.router, train=True))
    console = console or Console(quiet=True)
    device = pick_device(config.device)
    model, card = run.load_model()
    if model.num_experts == 1:
        raise InputError(f"{run.folder} has one expert; a router chooses among several")
    dataset, skipped = _load_data(run, config, console)
    place = Workplace(run, config, dataset, device, console)
    card = _checked(card, place)
    if skipped is not None:
        run.write_skipped(skipped)
    loaders = _eval_loaders(config, place.dataset, device)
    _check_choice(config.router.compute_budget, config.router.max_accuracy_drop, loaders)
    card = train_router(place, place.on_device(model), card, loaders.get("val"))
    run.write_config(replace(run.config, router=config.router))  # the rest is how its experts were trained
    print_results(console, run, _evaluate(place, model, card, loaders), "test", config)
    return run


def print_results(console: Console, run: Run, tested: Tested, split: Part, config: Config) -> None:
    """The results as tables for the terminal, and where there is more."""
    shots, evaluation = config.evaluation, tested.evaluations[split]
    title = f"{config.name}: {evaluation.num_images:,} {split} images"
    console.print(summary(evaluation, title, many_above=shots.many_above, few_below=shots.few_below))
    if routing := tested.routings.get(split):
        console.print(routing_summary(routing, f"{config.name}: routing of {evaluation.num_images:,} {split} images"))
    _print(console, f"Results, plots and settings: {run.folder / 'report.md'}")


def _evaluate(place: Workplace, model: MultiExpert, card: ModelCard, loaders: Mapping[Part, Loader]) -> Tested:
    run, config = place.run, place.config
    shots = {"many_above": config.evaluation.many_above, "few_below": config.evaluation.few_below}
    given = {part: answers(model, loader) for part, loader in loaders.items()}
    evaluations = {part: evaluate_answers(given[part], card.class_counts, config) for part in given}
    routings: dict[Part, RoutingReport] = {}
    if model.router is not None:
        speed = images_per_second(
            model, _some_images(loaders["test"]), SPEED_BATCH, SPEED_SECONDS, threshold=model.router.threshold
        )
        routings = {part: _routing(model, card, own, shots, speed) for part, own in given.items()}
    names = {"class_names": list(card.class_names), "class_counts": list(card.class_counts)}
    results = {part: evaluation.as_dict() for part, evaluation in evaluations.items()}
    for part, routing in routings.items():
        results[part]["routing"] = routing.as_dict()
    run.write_json("results.json", {"epoch": card.epoch, **results, **names})
    write_report(
        run.folder,
        config=asdict(config),
        evaluations={str(part): evaluation for part, evaluation in evaluations.items()},
        class_names=card.class_names,
        class_counts=card.class_counts,
        history=run.history(),
        environment=run.environment(),
        routing=routings.get("test"),
        **shots,
    )
    return Tested(evaluations, routings)


def _routing(
    model: MultiExpert, card: ModelCard, given: Answers, shots: Mapping[str, int], speed: Speed
) -> RoutingReport:
    assert model.router is not None
    assert given.router_logits is not None
    price, experts = cost(model, card.image_size), range(1, model.num_experts + 1)
    costs, prefix_costs = [price.routed(number) for number in experts], [price.prefix(number) for number in experts]
    said = given.logits, given.router_logits, given.labels
    result = tradeoff.routing(
        *said,
        card.class_counts,
        costs,
        prefix_costs,
        model.router.threshold,
        many_above=shots["many_above"],
        few_below=shots["few_below"],
    )
    return RoutingReport.of(result, *said, costs, speed=speed, chosen_on="val" if card.threshold_for else None)


def _some_images(loader: Loader) -> Tensor:
    """Enough of them to measure speed with."""
    batches, number = [], 0
    for images, *_ in loader.epoch(0):
        batches.append(images)
        number += len(images)
        if number >= SPEED_IMAGES:
            break
    return torch.cat(batches)[:SPEED_IMAGES].contiguous(memory_format=torch.channels_last)


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


def _check_budget(compute_budget: float | str | None, model: MultiExpert, card: ModelCard) -> None:
    if compute_budget is None:
        return
    budget, first = parse_budget(str(compute_budget)), cost(model, card.image_size).prefix(1)
    if budget.amount < (first if budget.unit == "MACs" else 1):
        raise InputError(
            f"router.compute_budget is {compute_budget}: below the first expert's cost, {macs(first)} MACs"
        )


def _eval_loaders(config: Config, dataset: Dataset, device: torch.device) -> dict[Part, Loader]:
    loaders: dict[Part, Loader] = {"test": build.eval_loader(config, dataset, dataset.test, device)}
    if dataset.val is not None:
        loaders["val"] = build.eval_loader(config, dataset, dataset.val, device)
    return loaders


def _checked(trained: ModelCard, place: Workplace) -> ModelCard:
    """The description of a model with what its data tell; refuses data and settings that are not its own."""
    run, config, now = place.run, place.config, place.card()
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
    common = [name for name in was["architecture"] if name in fields["architecture"]]
    for side in (was, fields):
        side["architecture"] = {name: side["architecture"][name] for name in common}
    for name, value in fields.items():
        if name not in ("epoch", "training_images", "threshold_for") and value != was[name]:
            raise InputError(
                f"{run.folder}: config.yaml makes {name} {value}, but the model was trained with {was[name]}"
            )
    return trained


def _announce(console: Console, place: Workplace, model: MultiExpert) -> None:
    config, dataset = place.config, place.dataset
    counts = dataset.class_counts
    _print(
        console,
        f"{config.name}: {len(dataset.train):,} training images in {dataset.num_classes} classes "
        f"({max(counts):,} to {min(counts):,} each), {len(dataset.test):,} test images\n"
        f"{config.model.backbone}, {counted(model.num_experts, 'expert', 'experts')}, "
        f"{model.num_parameters:,} parameters, "
        f"{config.training.epochs} epochs on {place.device}, into {place.run.folder}",
    )


def _tell_interrupted(console: Console, run: Run, config: Config, stage: str) -> None:
    resumed = f"go on with: longtail train --resume {run.folder}"
    if stage == "test":
        _print(console, f"Stopped. {run.folder} holds the trained model; {resumed}")
    elif stage == "router":
        _print(console, f"Stopped. {run.folder} holds the experts without a router; {resumed}")
    elif run.model_path.exists():
        epoch, epochs = run.epochs_done, config.training.epochs
        when = f"after epoch {epoch} of {epochs}" if epoch else f"in the middle of epoch 1 of {epochs}"
        _print(console, f"Stopped. {run.folder} holds the model {when}; test it with: longtail evaluate {run.folder}")
    else:
        _print(console, f"Stopped before the experts' training; {resumed}")


def _print(console: Console, text: str) -> None:
    # Names may hold what Rich takes for markup, and a command or a path must not be broken into lines.
    console.print(text, markup=False, highlight=False, soft_wrap=True)
