"""Stage 1: the experts."""

from dataclasses import replace
from typing import Any

from longtail.data import build as data_build
from longtail.data.loaders import Loader
from longtail.evaluation.outputs import collect_outputs, evaluate_outputs
from longtail.models import build as model_build
from longtail.models.activation_checkpointing import checkpoint_activations
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.training import optim
from longtail.training.loop import fit
from longtail.training.progress import TrainingProgress


class Experts:
    """Stage 1. Making it finds what is wrong with the settings; `train` takes the time.

    Raises:
        InputError: the settings do not fit together.
    """

    def __init__(self, context: RunContext):
        config = context.config
        self.context = context
        with context.seeded_init():
            model = create_model(
                **model_build.architecture(config, context.dataset), pretrained=config.model.pretrained
            )
        self.model = context.on_device(model)
        if config.training.checkpoint_activations:
            checkpoint_activations(model)
        self.loader = data_build.train_loader(config, context.dataset, context.runtime)
        self.checkpoint = context.checkpoint("experts")

    def train(self, val_loader: Loader | None, teacher: MultiExpert | None) -> ModelMetadata:
        """Trains trunk, branches and heads; after each epoch the run holds its weights. Returns their description."""
        context, training, runtime = self.context, self.context.config.training, self.context.runtime
        run, counts = context.run, context.dataset.class_counts
        metadata, records = context.metadata(), self.checkpoint.records
        if self.checkpoint.is_there:
            context.say(
                f"Going on in epoch {len(records) + 1} of {training.epochs}, where {self.checkpoint.path} was saved"
            )
        model = model_build.for_training(context.config, self.model, runtime)
        task = model_build.experts_task(context.config, counts, model, teacher).to(runtime.device)
        optimizer, rate = optim.optimizer(context.config, task), optim.learning_rate(context.config)
        progress = TrainingProgress(
            context.console, training.epochs, len(self.loader), self.loader.num_images, done=len(records)
        )
        options: Any = {"accumulation": training.accumulation, "clip_gradient": training.clip_gradient}
        options |= {"seed": context.config.seed, "runtime": runtime, "checkpoint": self.checkpoint}
        try:
            with progress, context.signals.postponed():
                for record in fit(task, self.loader, optimizer, rate, training.epochs, progress.step, **options):
                    if training.validate_every and record["epoch"] % training.validate_every == 0:
                        assert val_loader is not None
                        runtime.group.broadcast(self.model.buffers())
                        seen = evaluate_outputs(
                            collect_outputs(self.model, val_loader, runtime.group), counts, context.config
                        )
                        record |= {"val_accuracy": seen.accuracy, "val_balanced": seen.balanced}
                    metadata = replace(metadata, epoch=record["epoch"])
                    records.append(record)
                    run.save_model(self.model, metadata)
                    run.write_history(records)
                    progress.epoch(record)
        except KeyboardInterrupt:
            if not run.model_path.exists():
                run.save_model(self.model, metadata)
            raise
        runtime.group.broadcast(self.model.buffers())
        self.checkpoint.remove()
        return metadata
