"""The stages of training: the experts, and their router."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from longtail import build
from longtail.checkpoint import ModelCard, save_model
from longtail.config import Config
from longtail.data.loading import Loader
from longtail.data.splits import Dataset
from longtail.evaluation import Answers, answers, evaluate_answers
from longtail.flops import cost
from longtail.frozen import FrozenOutputs
from longtail.models.checkpointing import checkpoint_activations
from longtail.models.experts import MultiExpert, create_model, create_router
from longtail.progress import TrainingProgress
from longtail.run import Run
from longtail.tasks import TrainRouter
from longtail.tradeoff import choose_threshold, curve, parse_budget, prefix_predictions
from longtail.training import fit


@dataclass(frozen=True)
class Workplace:
    """What every stage works with."""

    run: Run
    config: Config
    dataset: Dataset
    device: torch.device
    console: Console

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
        moved: MultiExpert = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return moved


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
        self.loader = build.train_loader(config, place.dataset, place.device)

    def train(self, val_loader: Loader | None, teacher: MultiExpert | None) -> ModelCard:
        """Trains trunk, branches and heads; after each epoch the run holds its weights. Returns their description."""
        place, training = self.place, self.place.config.training
        run, counts = place.run, place.dataset.class_counts
        card = place.card()
        task = build.experts_task(place.config, counts, self.model, teacher).to(place.device)
        optimizer, rate = build.optimizer(place.config, task), build.learning_rate(place.config)
        progress = TrainingProgress(place.console, training.epochs, len(self.loader), self.loader.num_images)
        options: Any = {"accumulation": training.accumulation, "clip_gradient": training.clip_gradient}
        options |= {"seed": place.config.seed, "device": place.device}
        try:
            with progress:
                for record in fit(task, self.loader, optimizer, rate, training.epochs, progress.step, **options):
                    if training.validate_every and record["epoch"] % training.validate_every == 0:
                        assert val_loader is not None
                        seen = evaluate_answers(answers(self.model, val_loader), counts, place.config)
                        record |= {"val_accuracy": seen.accuracy, "val_balanced": seen.balanced}
                    card = replace(card, epoch=record["epoch"])
                    if card.epoch == 1:
                        run.clear()  # what an interrupted attempt left is good until something takes its place
                    save_model(run.model_path, self.model, card)
                    run.append(record)
                    progress.epoch(record)
        except KeyboardInterrupt:
            if card.epoch == 0 and not run.model_path.exists():
                save_model(run.model_path, self.model, card)
            raise
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
    settings, seed = place.config.router, place.config.seed
    options = build.router_options(place.config)
    model.router = None
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        router = create_router(model, **options).to(place.device)
    model.eval()
    images = build.shuffled_loader(place.config, place.dataset, place.device)  # not mixed: routing is for real images
    loader = FrozenOutputs(model, images, batch_size=settings.batch_size, cache_gib=settings.cache_gib, seed=seed)
    optimizer, rate = build.router_optimizer(place.config, router), build.router_learning_rate(place.config)
    if not loader.is_cached:
        text = (
            "What the experts say does not fit into router.cache_gib and is computed anew in every epoch of the router."
        )
        place.console.print(text, highlight=False, soft_wrap=True)
    progress = TrainingProgress(place.console, settings.epochs, len(loader), loader.num_images, "router epoch")
    start, records = time.perf_counter(), []
    task = TrainRouter(router, settings.positive_weight)
    with progress:
        for record in fit(task, loader, optimizer, rate, settings.epochs, progress.step):
            records.append(record)
            progress.epoch(record)
    model.router = router.eval()
    card = replace(card, architecture={**card.architecture, "router": options}, threshold_for="")
    save_model(place.run.model_path, model, card)
    budget, drop = settings.compute_budget, settings.max_accuracy_drop
    if budget is not None or drop is not None:
        assert val_loader is not None
        card = set_threshold(model, card, answers(model, val_loader), budget, drop)
        save_model(place.run.model_path, model, card)
    place.run.write_json("router.json", {"seconds": time.perf_counter() - start, "epochs": records})
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
