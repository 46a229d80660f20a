"""Stage 1: the experts."""

from dataclasses import replace
from typing import Any

from longtail.data import build as data_build
from longtail.data.loaders import Loader
from longtail.evaluation.outputs import answers, evaluate_answers
from longtail.models import build as model_build
from longtail.models.activation_checkpointing import checkpoint_activations
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.runs.context import Workplace
from longtail.runs.model_file import ModelCard
from longtail.training import optim
from longtail.training.loop import fit
from longtail.training.progress import TrainingProgress


class Experts:
    """Stage 1. Making it finds what is wrong with the settings; `train` takes the time.

    Raises:
        InputError: the settings do not fit together.
    """

    def __init__(self, place: Workplace):
        config = place.config
        self.place = place
        with place.drawing():
            model = create_model(**model_build.architecture(config, place.dataset), pretrained=config.model.pretrained)
        self.model = place.on_device(model)
        if config.training.checkpoint_activations:
            checkpoint_activations(model)
        self.loader = data_build.train_loader(config, place.dataset, place.runtime)
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
        model = model_build.for_training(place.config, self.model, runtime)
        task = model_build.experts_task(place.config, counts, model, teacher).to(runtime.device)
        optimizer, rate = optim.optimizer(place.config, task), optim.learning_rate(place.config)
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
