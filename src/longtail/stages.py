"""The stages of training: the experts, and their router."""

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from longtail import build
from longtail.checkpoint import Checkpoint, ModelCard
from longtail.config import Config
from longtail.data.loading import Loader
from longtail.data.soundness import BadImage
from longtail.data.splits import Dataset
from longtail.evaluation import Answers, answers, evaluate_answers
from longtail.flops import cost
from longtail.frozen import FrozenOutputs
from longtail.models.checkpointing import checkpoint_activations
from longtail.models.experts import MultiExpert, create_model, create_router
from longtail.progress import TrainingProgress, say
from longtail.run import Run
from longtail.runtime import Runtime
from longtail.settings import what_counts
from longtail.signals import Signals
from longtail.tasks import TrainRouter
from longtail.tradeoff import choose_threshold, curve, parse_budget, prefix_predictions
from longtail.training import fit


@dataclass(frozen=True)
class Workplace:
    """What every stage works with."""

    run: Run
    config: Config
    dataset: Dataset
    runtime: Runtime
    console: Console
    signals: Signals = field(default_factory=Signals)
    skipped: list[BadImage] | None = None
    """Images that were left out because they do not decode; None where nobody looked"""

    def keep_skipped(self) -> None:
        """Lists them in the run's folder, so that everything later leaves out the same."""
        if self.skipped is not None:
            self.run.write_skipped(self.skipped)

    def card(self) -> ModelCard:
        """The description of the model, before it has learnt anything."""
        return ModelCard(
            architecture=build.architecture(self.config, self.dataset),
            class_names=self.dataset.class_names,
            class_counts=tuple(self.dataset.class_counts),
            training_images=self.dataset.train.fingerprint(Path(self.config.data.root)),
            **build.preprocessing(self.config, self.dataset)._asdict(),
        )

    def on_device(self, model: MultiExpert) -> MultiExpert:
        """The same model on the device, in the layout that convolutions run fastest in; the loaders deliver it."""
        moved: MultiExpert = model.to(self.runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return moved

    def checkpoint(self, stage: str, refuses: bool = True) -> Checkpoint:
        """Where a stage goes on from; see `Checkpoint`."""
        return Checkpoint(
            self.run.checkpoint_path(stage),
            what_counts(self.config),
            refuses=refuses,
            every=60 * self.config.training.checkpoint_every,
            group=self.runtime.group,
            signals=self.signals,
        )

    def say(self, text: str) -> None:
        """A line for the user."""
        say(self.console, text)


class Experts:
    """Stage 1. Making it finds what is wrong with the settings; `train` takes the time.

    Raises:
        InputError: the settings do not fit together.
    """

    def __init__(self, place: Workplace):
        config = place.config
        self.place = place
        with torch.random.fork_rng(devices=[]):  # the caller's random numbers are not ours to set
            torch.default_generator.manual_seed(config.seed)  # not a GPU's, which would stay set
            model = create_model(**build.architecture(config, place.dataset), pretrained=config.model.pretrained)
        self.model = place.on_device(model)
        if config.training.checkpoint_activations:
            checkpoint_activations(model)
        self.loader = build.train_loader(config, place.dataset, place.runtime)
        self.checkpoint = place.checkpoint("experts")

    def train(self, val_loader: Loader | None, teacher: MultiExpert | None) -> ModelCard:
        """Trains trunk, branches and heads; after each epoch the run holds its weights. Returns their description."""
        place, training, runtime = self.place, self.place.config.training, self.place.runtime
        run, counts = place.run, place.dataset.class_counts
        card, records = place.card(), self.checkpoint.records
        if self.checkpoint.is_there:
            place.say(
                f"Going on in epoch {len(records) + 1} of {training.epochs}, where {self.checkpoint.path} was saved"
            )
        model = build.for_training(place.config, self.model, runtime)
        task = build.experts_task(place.config, counts, model, teacher).to(runtime.device)
        optimizer, rate = build.optimizer(place.config, task), build.learning_rate(place.config)
        progress = TrainingProgress(
            place.console, training.epochs, len(self.loader), self.loader.num_images, done=len(records)
        )
        options: Any = {"accumulation": training.accumulation, "clip_gradient": training.clip_gradient}
        options |= {"seed": place.config.seed, "runtime": runtime, "checkpoint": self.checkpoint}
        try:
            with progress, place.signals.postponed():
                for record in fit(task, self.loader, optimizer, rate, training.epochs, progress.step, **options):
                    if training.validate_every and record["epoch"] % training.validate_every == 0:
                        assert val_loader is not None
                        runtime.group.align(self.model.buffers())
                        seen = evaluate_answers(answers(self.model, val_loader, runtime.group), counts, place.config)
                        record |= {"val_accuracy": seen.accuracy, "val_balanced": seen.balanced}
                    card = replace(card, epoch=record["epoch"])
                    records.append(record)
                    run.save_model(self.model, card)
                    run.write_history(records)
                    progress.epoch(record)
        except KeyboardInterrupt:
            if not run.model_path.exists():
                run.save_model(self.model, card)
            raise
        runtime.group.align(self.model.buffers())
        self.checkpoint.remove()
        return card


def train_router(place: Workplace, model: MultiExpert, card: ModelCard, val_loader: Loader | None) -> ModelCard:
    """Stage 2: gives a trained model a new router; the run then holds it. Nothing but the router changes.

    Args:
        place: where to.
        model: on the device.
        card: of the model.
        val_loader: images to choose the threshold on, where the settings want that.

    Raises:
        InputError: the model has a single expert.
    """
    settings, seed, runtime = place.config.router, place.config.seed, place.runtime
    options = build.router_options(place.config)
    model.router = None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        router = create_router(model, **options).to(runtime.device)
    model.eval()
    # Not mixed: routing is for real images.
    images = build.shuffled_loader(place.config, place.dataset, runtime)
    loader = FrozenOutputs(
        model,
        images,
        batch_size=settings.batch_size,
        cache_gib=settings.cache_gib,
        seed=seed,
        group=runtime.group,
    )
    optimizer, rate = build.router_optimizer(place.config, router), build.router_learning_rate(place.config)
    if not loader.is_cached:
        place.say(
            "What the experts say does not fit into router.cache_gib and is computed anew in every epoch of the router."
        )
    checkpoint = place.checkpoint("router", refuses=False)
    records = checkpoint.records
    if checkpoint.is_there:
        place.say(f"Going on in the router's epoch {len(records) + 1} of {settings.epochs}")
    progress = TrainingProgress(
        place.console, settings.epochs, len(loader), loader.num_images, "router epoch", done=len(records)
    )
    start = time.perf_counter()
    task = TrainRouter(router, settings.positive_weight)
    how: Any = {"runtime": replace(runtime, precision="float32"), "checkpoint": checkpoint}
    with progress, place.signals.postponed():
        for record in fit(task, loader, optimizer, rate, settings.epochs, progress.step, **how):
            records.append(record)
            progress.epoch(record)
    model.router = router.eval()
    card = replace(card, architecture={**card.architecture, "router": options}, threshold_for="")
    budget, drop = settings.compute_budget, settings.max_accuracy_drop
    if budget is not None or drop is not None:
        assert val_loader is not None
        card = set_threshold(model, card, answers(model, val_loader, runtime.group), budget, drop)
    place.run.write_json("router.json", {"seconds": time.perf_counter() - start, "epochs": records})
    place.run.save_model(model, card)  # last: a model with a router is what says that this stage is done
    checkpoint.remove()
    return card


def set_threshold(
    model: MultiExpert,
    card: ModelCard,
    given: Answers,
    compute_budget: float | str | None,
    max_accuracy_drop: float | None,
) -> ModelCard:
    """Gives the router of a model the threshold that a wish asks for; returns the description that says so.

    Args:
        model: with a router.
        card: of the model.
        given: what the model says of the images to choose on.
        compute_budget: see `longtail.config.RouterConfig`.
        max_accuracy_drop: likewise; one of them is given.

    Raises:
        InputError: no threshold satisfies the wish.
    """
    assert model.router is not None
    assert given.router_logits is not None
    price = cost(model, card.image_size)
    costs = [price.routed(used) for used in range(1, model.num_experts + 1)]
    right = prefix_predictions(given.logits) == given.labels[:, None]
    points = curve(right, given.router_logits, given.labels, costs)
    budget = None if compute_budget is None else parse_budget(str(compute_budget))
    threshold = choose_threshold(points, compute_budget=budget, max_accuracy_drop=max_accuracy_drop)
    model.router.threshold = threshold
    router = {**card.architecture["router"], "threshold": threshold}
    wish = f"compute_budget {compute_budget}" if budget else f"max_accuracy_drop {max_accuracy_drop:g}"
    return replace(card, architecture={**card.architecture, "router": router}, threshold_for=wish)
