"""The whole way: from a `Config` to a trained, tested and described run; and to test a run again."""

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from longtail import build
from longtail.checkpoint import ModelCard, save_model
from longtail.config import Config
from longtail.data.loading import Loader
from longtail.data.splits import Dataset
from longtail.errors import InputError
from longtail.evaluation import evaluate_loader
from longtail.metrics import Evaluation
from longtail.models.checkpointing import checkpoint_activations
from longtail.models.experts import MultiExpert, create_model
from longtail.progress import TrainingProgress
from longtail.report import counted, summary, write_report
from longtail.run import Run, new_run
from longtail.runtime import environment, pick_device
from longtail.tasks import TrainExperts
from longtail.training import fit

Part = Literal["val", "test"]


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
    console = console or Console(quiet=True)
    run = new_run(config.name, output)
    device = pick_device(config.device)
    dataset = build.load_data(config)
    shape = build.architecture(config, dataset)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to set
        torch.manual_seed(config.seed)
        model = create_model(**shape, pretrained=config.model.pretrained)
    # Channels-last is how convolutions run fastest on CPUs and tensor cores; the loaders deliver it.
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.training.checkpoint_activations:
        checkpoint_activations(model)
    task = TrainExperts(model, build.criterion(config, dataset.class_counts).to(device))
    optimizer = build.optimizer(config, task)
    loader = build.train_loader(config, dataset, device)
    # Made before training, so that a test picture that does not decode is not found after hours.
    tests = _eval_loaders(config, dataset, device)
    card = _card(config, dataset)

    run.start(config, environment(device))
    _announce(console, run, config, dataset, model, device)
    training = config.training
    progress = TrainingProgress(console, training.epochs, len(loader), loader.num_images)
    start = time.perf_counter()
    try:
        with progress:
            rate = build.learning_rate(config)
            options: Any = {"accumulation": training.accumulation, "clip_gradient": training.clip_gradient}
            for record in fit(task, loader, optimizer, rate, training.epochs, progress.step, **options):
                every = training.validate_every
                if every and record["epoch"] % every == 0:
                    seen = evaluate_loader(model, tests["val"], dataset.class_counts, config)
                    record |= {"val_accuracy": seen.accuracy, "val_balanced": seen.balanced}
                card = replace(card, epoch=record["epoch"])
                save_model(run.model_path, model, card)
                run.append(record)
                progress.epoch(record)
    except KeyboardInterrupt:
        if card.epoch == 0:
            save_model(run.model_path, model, card)
        _tell_interrupted(console, run, card.epoch, training.epochs)
        raise
    except BaseException:
        if card.epoch == 0:
            run.discard()
        raise
    run.write_json("environment.json", run.environment() | {"training_seconds": time.perf_counter() - start})
    result = _evaluate(run, config, model, card, tests)["test"]
    print_results(console, run, result, "test", config)
    return run


def evaluate(
    run: Run | str | Path,
    split: Part = "test",
    *,
    config: Config | None = None,
    device: str = "auto",
) -> Evaluation:
    """Tests a run, and writes its results.json, report.md and plots anew.

    Args:
        run: a run or its folder, also of an interrupted run.
        split: the part whose result is returned. Test and, where there is one, validation results are written.
        config: the run's own by default; another one may say where the data are now, or how to count.
        device: where to.

    Raises:
        InputError: no such run; its data are not there, have changed, or have no such part; or the settings are not
            those the model was trained with.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    config = config or run.config
    on = pick_device(device)
    model, card = run.load_model()
    dataset = build.load_data(config)
    if not card.class_counts and dataset.num_classes == len(card.class_names):  # converted: its data tell
        card = replace(card, class_names=dataset.class_names, class_counts=tuple(dataset.class_counts))
    _check_same(card, _card(config, dataset), run, config)
    loaders = _eval_loaders(config, dataset, on)
    if split not in loaders:
        raise InputError(f"data set '{config.data.name}' has no part '{split}'; there is {' and '.join(loaders)}")
    model.to(on, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _evaluate(run, config, model, card, loaders)[split]


def print_results(console: Console, run: Run, evaluation: Evaluation, split: Part, config: Config) -> None:
    """An evaluation as a table for the terminal, and where there is more."""
    shots = config.evaluation
    title = f"{config.name}: {evaluation.num_images:,} {split} images"
    console.print(summary(evaluation, title, many_above=shots.many_above, few_below=shots.few_below))
    _print(console, f"Results, plots and settings: {run.folder / 'report.md'}")


def _evaluate(
    run: Run, config: Config, model: MultiExpert, card: ModelCard, loaders: Mapping[Part, Loader]
) -> dict[Part, Evaluation]:
    evaluations = {part: evaluate_loader(model, loader, card.class_counts, config) for part, loader in loaders.items()}
    names = {"class_names": list(card.class_names), "class_counts": list(card.class_counts)}
    results = {part: evaluation.as_dict() for part, evaluation in evaluations.items()}
    run.write_json("results.json", {"epoch": card.epoch, **results, **names})
    write_report(
        run.folder,
        config=asdict(config),
        evaluations={str(part): evaluation for part, evaluation in evaluations.items()},
        class_names=card.class_names,
        class_counts=card.class_counts,
        history=run.history(),
        environment=run.environment(),
        many_above=config.evaluation.many_above,
        few_below=config.evaluation.few_below,
    )
    return evaluations


def _eval_loaders(config: Config, dataset: Dataset, device: torch.device) -> dict[Part, Loader]:
    loaders: dict[Part, Loader] = {"test": build.eval_loader(config, dataset, dataset.test, device)}
    if dataset.val is not None:
        loaders["val"] = build.eval_loader(config, dataset, dataset.val, device)
    return loaders


def _card(config: Config, dataset: Dataset) -> ModelCard:
    form = build.preprocessing(config, dataset)
    return ModelCard(
        architecture=build.architecture(config, dataset),
        class_names=dataset.class_names,
        class_counts=tuple(dataset.class_counts),
        **form._asdict(),
        training_images=dataset.train.fingerprint(Path(config.data.root)),
    )


def _check_same(trained: ModelCard, now: ModelCard, run: Run, config: Config) -> None:
    """Refuses to test a model on data or with settings that are not its own."""
    if trained.class_names != now.class_names:
        raise InputError(f"{run.folder}: was trained on other classes than those of data set '{config.data.name}'")
    if trained.training_images and trained.training_images != now.training_images:
        raise InputError(
            f"{run.folder}: the training images of data set '{config.data.name}' are not those the model was trained "
            "on (added, removed or split differently), so test images might be among the latter; train again"
        )
    for name, value in asdict(now).items():
        was = asdict(trained)[name]
        if name not in ("epoch", "training_images") and value != was:
            raise InputError(f"{run.folder}: config.yaml makes {name} {value}, but the model was trained with {was}")


def _announce(
    console: Console, run: Run, config: Config, dataset: Dataset, model: MultiExpert, device: torch.device
) -> None:
    counts = dataset.class_counts
    _print(
        console,
        f"{config.name}: {len(dataset.train):,} training images in {dataset.num_classes} classes "
        f"({max(counts):,} to {min(counts):,} each), {len(dataset.test):,} test images\n"
        f"{config.model.backbone}, {counted(model.num_experts, 'expert', 'experts')}, "
        f"{model.num_parameters:,} parameters, "
        f"{config.training.epochs} epochs on {device}, into {run.folder}",
    )


def _tell_interrupted(console: Console, run: Run, epoch: int, epochs: int) -> None:
    when = f"after epoch {epoch} of {epochs}" if epoch else f"in the middle of epoch 1 of {epochs}"
    _print(console, f"Stopped. {run.folder} holds the model {when}; test it with: longtail evaluate {run.folder}")


def _print(console: Console, text: str) -> None:
    # Names may hold what Rich takes for markup, and a command or a path must not be broken into lines.
    console.print(text, markup=False, highlight=False, soft_wrap=True)
