"""Training of heads or a router on the cached outputs of frozen experts, and how they get into the run."""

import logging
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from longtail.config.schema import ClassifierConfig, RouterConfig
from longtail.data.loaders import Loader
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.runs.run import ADJUSTED_RESULTS
from longtail.training.cached_outputs import CachedOutputs, ComputedOutputs, cache_bytes
from longtail.training.checkpoint import Checkpoint
from longtail.training.loop import LoopOptions, fit
from longtail.training.optim import epoch_cosine, sgd
from longtail.training.progress import TrainingProgress
from longtail.utils.files import write_tensors

logger = logging.getLogger(__name__)


class TrainedStage(NamedTuple):
    """A complete stage whose result is in the model in memory, and not in the run yet."""

    metadata: ModelMetadata
    """Of the model"""
    record: dict[str, Any]
    """How it was made, for a JSON file with the name of the stage"""
    checkpoint: Checkpoint
    own_heads: tuple[dict[str, Tensor], dict[str, Any]] | None = None
    """The experts' own heads if the stage replaced them: weights, and the arguments of `create_heads`"""


def save_stages(context: RunContext, model: MultiExpert, **stages: TrainedStage) -> ModelMetadata:
    """Replaces the model of a run after the stages ``classifier``, ``router`` or both; returns its metadata.

    All or nothing: until the new model is complete on the disk, the run holds the earlier model with its results. The
    same command completes a run that is killed later.
    """
    run, last = context.run, list(stages.values())[-1]

    def replace_others() -> None:
        for name, stage in stages.items():
            if stage.own_heads is not None:
                write_tensors(run.heads_path, *stage.own_heads)
            run.write_json(f"{name}.json", stage.record)
        run.write_config(replace(run.config, **{name: getattr(context.config, name) for name in stages}))
        run.remove("results.json", *(ADJUSTED_RESULTS if "classifier" in stages else ()))  # of the earlier model

    run.save_model(model, last.metadata, before=replace_others)
    for stage in stages.values():
        stage.checkpoint.remove()
    return last.metadata


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
            context.loaders.shuffled(context.config.training.batch_size),
            batch_size=settings.batch_size,
            seed=context.config.seed,
            signals=context.signals,
            group=context.runtime.group,
            views=views,
        )
    else:
        logger.info("The experts' outputs do not fit into %s.cache_gib; each epoch computes them again.", stage)
        loader = ComputedOutputs(
            model, context.loaders.balanced(settings.batch_size), context.config.evaluation.batch_size
        )
    records = checkpoint.records
    if checkpoint.exists:
        logger.info("Resuming epoch %d of %d of the %s", len(records) + 1, settings.epochs, stage)
    unit, done, seconds = f"{stage} epoch", len(records), checkpoint.seconds
    progress = TrainingProgress(settings.epochs, loader, unit, done=done, seconds=seconds)
    runtime = replace(context.runtime, precision="float32")
    options = LoopOptions(runtime=runtime, checkpoint=checkpoint, on_step=progress.step)
    optimizer = sgd(settings, task, nesterov)
    with progress, context.signals.postponed():
        for record in fit(task, loader, optimizer, epoch_cosine(settings), settings.epochs, options):
            records.append(record)
            context.trackers.epochs(stage, *records)
            progress.epoch(record)
    return records
