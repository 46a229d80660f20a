"""What the stages after the experts share: something small is trained on what the frozen experts say."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from longtail.config.schema import ClassifierConfig, RouterConfig
from longtail.data import build as data_build
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import RunContext
from longtail.training.cached_outputs import FrozenOutputs
from longtail.training.checkpoint import Checkpoint
from longtail.training.loop import fit
from longtail.training.progress import TrainingProgress


def train_on_frozen(
    context: RunContext,
    model: MultiExpert,
    task: nn.Module,
    stage: Literal["classifier", "router"],
    optimizer: torch.optim.Optimizer,
    rate: Callable[[float], float],
    checkpoint: Checkpoint,
) -> list[dict[str, Any]]:
    """Trains a task on class-balanced draws of what a model says of the training images; returns its epochs.

    Args:
        context: where.
        model: on the device; only the task changes.
        task: over (logits, labels, epoch, features), see `FrozenOutputs`.
        stage: section of the settings.
        optimizer: over what the task trains.
        rate: at a point of training.
        checkpoint: of the stage, to be removed by the caller when its result is safe.
    """
    settings: ClassifierConfig | RouterConfig = getattr(context.config, stage)
    model.eval()
    loader = FrozenOutputs(
        model,
        # Not mixed: classifiers and routers are for real images.
        data_build.shuffled_loader(context.config, context.dataset, context.runtime),
        batch_size=settings.batch_size,
        cache_gib=settings.cache_gib,
        seed=context.config.seed,
        signals=context.signals,
        group=context.runtime.group,
        views=getattr(settings, "views", 1),
    )
    if not loader.is_cached:
        context.say(
            f"What the experts say does not fit into {stage}.cache_gib and is computed anew in every epoch of the "
            f"{stage}."
        )
    records = checkpoint.records
    if checkpoint.is_there:
        context.say(f"Going on in the {stage}'s epoch {len(records) + 1} of {settings.epochs}")
    progress = TrainingProgress(
        context.console, settings.epochs, len(loader), loader.num_images, f"{stage} epoch", done=len(records)
    )
    how: Any = {"runtime": replace(context.runtime, precision="float32"), "checkpoint": checkpoint}
    with progress, context.signals.postponed():
        for record in fit(task, loader, optimizer, rate, settings.epochs, progress.step, **how):
            records.append(record)
            progress.epoch(record)
    return records
