"""Stage 1: the experts."""

from dataclasses import replace
from typing import Any

from longtail import build
from longtail.data.loading import Loader
from longtail.evaluation import answers, evaluate_answers
from longtail.model_file import ModelCard
from longtail.models.checkpointing import checkpoint_activations
from longtail.models.experts import MultiExpert, create_model
from longtail.progress import TrainingProgress
from longtail.stages.workplace import Workplace
from longtail.training import fit


class Experts:
    """Stage 1. Making it finds what is wrong with the settings; `train` takes the time.

    Raises:
        InputError: the settings do not fit together.
    """

    def __init__(self, place: Workplace):
        config = place.config
        self.place = place
        with place.drawing():
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
