"""Training of heads or a router on the cached outputs of frozen experts."""

import logging
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from longtail.config.schema import ClassifierConfig, RouterConfig
from longtail.data.loaders import Loader
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import RunContext
from longtail.training.cached_outputs import CachedOutputs, ComputedOutputs, cache_bytes
from longtail.training.checkpoint import Checkpoint
from longtail.training.loop import LoopOptions, fit
from longtail.training.optim import epoch_cosine, sgd
from longtail.training.progress import TrainingProgress

logger = logging.getLogger(__name__)


def train_on_frozen(
    context: RunContext,
    model: MultiExpert,
    task: nn.Module,
    stage: Literal["classifier", "router"],
    checkpoint: Checkpoint,
    *,
    nesterov: bool,
) -> list[dict[str, Any]]:
    """Trains a task on class-balanced draws of the frozen experts' outputs; returns the metrics of its epochs.

    Args:
        context: of the run.
        model: on the device; only the task changes.
        task: its batches are those of `CachedOutputs`.
        stage: section of the settings.
        checkpoint: of the stage; the caller removes it when the result is safe.
        nesterov: Nesterov momentum.
    """
    settings: ClassifierConfig | RouterConfig = getattr(context.config, stage)
    model.eval()
    views = getattr(settings, "views", 1)
    loader: Loader
    # Images are not mixed: heads and routers are for real ones.
    if cache_bytes(model, len(context.dataset.train), views) <= settings.cache_gib * 2**30:
        loader = CachedOutputs(
            model,
            context.shuffled_loader(),
            batch_size=settings.batch_size,
            seed=context.config.seed,
            signals=context.signals,
            group=context.runtime.group,
            views=views,
        )
    else:
        logger.info("The experts' outputs do not fit into %s.cache_gib; each epoch computes them again.", stage)
        loader = ComputedOutputs(
            model, context.balanced_loader(settings.batch_size), context.config.evaluation.batch_size
        )
    records = checkpoint.records
    if checkpoint.exists:
        logger.info("Resuming epoch %d of %d of the %s", len(records) + 1, settings.epochs, stage)
    progress = TrainingProgress(settings.epochs, loader, f"{stage} epoch", done=len(records))
    runtime = replace(context.runtime, precision="float32")
    options = LoopOptions(runtime=runtime, checkpoint=checkpoint, on_step=progress.step)
    optimizer = sgd(settings, task, nesterov)
    with progress, context.signals.postponed():
        for record in fit(task, loader, optimizer, epoch_cosine(settings), settings.epochs, options):
            records.append(record)
            progress.epoch(record)
    return records
