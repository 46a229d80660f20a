"""The whole way: from a `Config` to a trained, tested and described run; and to test a run again."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table

from longtail import build
from longtail.checkpoint import ModelCard, save_model
from longtail.config import Config
from longtail.data.splits import Dataset
from longtail.errors import InputError
from longtail.evaluation import evaluate_loader
from longtail.metrics import Evaluation
from longtail.models.experts import MultiExpert, create_model
from longtail.progress import TrainingProgress
from longtail.report import summary, write_report
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
        InputError: settings, data or machine do not allow it. Nothing is written then.
    """
    console = console or Console(quiet=True)
    run = new_run(config.name, output)
    device = pick_device(config.device)
    dataset = build.load_data(config)
    torch.manual_seed(config.seed)
    shape = build.architecture(config, dataset.num_classes)
    # Channels-last is how convolutions run fastest on CPUs and tensor cores; the loaders deliver it.
    model = create_model(**shape).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    criterion = build.criterion(config, dataset.class_counts).to(device)
    loader = build.train_loader(config, dataset, device)
    validation = None
    if dataset.val is not None and config.training.validate_every > 0:
        validation = build.eval_loader(config, dataset, dataset.val, device)
    task = TrainExperts(model, criterion)
    optimizer = build.optimizer(config, task)
    size, resize = build.image_sizes(config, dataset)
    card = ModelCard(
        shape, dataset.class_names, tuple(dataset.class_counts), size, resize, config.data.mean, config.data.std
    )

    run.start(config, environment(device))
    _announce(console, run, config, dataset, model, device)
    progress = TrainingProgress(console, config.training.epochs, len(loader), loader.num_images)
    start = time.perf_counter()
    try:
        with progress:
            rate = build.learning_rate(config)
            for record in fit(task, loader, optimizer, rate, config.training.epochs, progress.step):
                if validation is not None and record["epoch"] % config.training.validate_every == 0:
                    seen = evaluate_loader(model, validation, dataset.class_counts, config)
                    record |= {"val_accuracy": seen.accuracy, "val_balanced": seen.balanced}
                card = replace(card, epoch=record["epoch"])
                save_model(run.model_path, model, card)
                run.append(record)
                progress.epoch(record)
    except KeyboardInterrupt:
        if card.epoch == 0:
            save_model(run.model_path, model, card)
        console.print(
            f"Stopped. {run.folder} holds the model after epoch {card.epoch} of {config.training.epochs}; "
            f"test it with: longtail evaluate {run.folder}",
            highlight=False,
        )
        raise
    run.write_json("environment.json", run.environment() | {"training_seconds": time.perf_counter() - start})
    result = evaluate(run, device=str(device), dataset=dataset)
    console.print(results_table(result, "test", config))
    console.print(f"Results, plots and settings: {run.folder / 'report.md'}", highlight=False)
    return run


def evaluate(
    run: Run | str | Path,
    split: Part = "test",
    *,
    device: str = "auto",
    dataset: Dataset | None = None,
) -> Evaluation:
    """Tests a run, and writes its results.json, report.md and plots anew.

    Args:
        run: a run or its folder, also of an interrupted run.
        split: the part whose result is returned. Test and, where there is one, validation results are written.
        device: where to.
        dataset: the run's data, where it is loaded already.

    Raises:
        InputError: no such run, its data are not there or have other classes, or have no such part.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    config = run.config
    on = pick_device(device)
    dataset = dataset or build.load_data(config)
    model, card = run.load_model()
    if dataset.class_names != card.class_names:
        raise InputError(f"{run.folder}: was trained on other classes than those of data set '{config.data.name}'")
    model.to(on, memory_format=torch.channels_last)  # type: ignore[call-overload]
    parts = {"test": dataset.test} | ({"val": dataset.val} if dataset.val is not None else {})
    if split not in parts:
        raise InputError(f"data set '{config.data.name}' has no part '{split}'; there is {' and '.join(parts)}")
    evaluations = {
        name: evaluate_loader(model, build.eval_loader(config, dataset, part, on), card.class_counts, config)
        for name, part in parts.items()
    }
    names = {"class_names": list(card.class_names), "class_counts": list(card.class_counts)}
    results = {name: evaluation.as_dict() for name, evaluation in evaluations.items()}
    run.write_json("results.json", {"epoch": card.epoch, **results, **names})
    write_report(
        run.folder,
        config=asdict(config),
        evaluations=evaluations,
        class_names=card.class_names,
        class_counts=card.class_counts,
        history=run.history(),
        environment=run.environment(),
        many_above=config.evaluation.many_above,
        few_below=config.evaluation.few_below,
    )
    return evaluations[split]


def results_table(evaluation: Evaluation, split: Part, config: Config) -> Table:
    """An evaluation as a table for the terminal."""
    shots = config.evaluation
    title = f"{config.name}: {evaluation.num_images:,} {split} images"
    return summary(evaluation, title, many_above=shots.many_above, few_below=shots.few_below)


def _announce(
    console: Console, run: Run, config: Config, dataset: Dataset, model: MultiExpert, device: torch.device
) -> None:
    counts = dataset.class_counts
    parameters = sum(parameter.numel() for parameter in model.parameters())
    experts = "1 expert" if model.num_experts == 1 else f"{model.num_experts} experts"
    console.print(
        f"[bold]{config.name}[/bold]: {len(dataset.train):,} training images in {dataset.num_classes} classes "
        f"({max(counts):,} to {min(counts):,} each), {len(dataset.test):,} test images\n"
        f"{config.model.backbone}, {experts}, {parameters:,} parameters, "
        f"{config.training.epochs} epochs on {device}, into {run.folder}",
        highlight=False,
    )
