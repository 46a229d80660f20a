"""A trained run, opened to evaluate it or to train a part of it again."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import NamedTuple

from longtail.config.schema import Config
from longtail.data.loaders import Loader
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import EvalSplit, RunContext, open_context
from longtail.runs.model_file import ModelMetadata
from longtail.runs.run import ADJUSTED_RESULTS, Run
from longtail.runtime.distributed import init_distributed
from longtail.runtime.process import GRACE, Signals
from longtail.utils.errors import InputError
from longtail.utils.format import shortened_list

KEPT_IN_MODEL = ("average", "temperature")
"""Settings of the section evaluation that the model keeps, and so does the run if an evaluation changes them"""


class OpenedModel(NamedTuple):
    """A trained run that no other process writes to."""

    context: RunContext
    model: MultiExpert
    """On the device, with the average that the settings ask for"""
    metadata: ModelMetadata
    loaders: dict[EvalSplit, Loader]
    average_changed: bool
    """Whether the settings ask for another average than the run's or the model's"""

    @property
    def temperature_changed(self) -> bool:
        """Whether the settings ask for another temperature than the run's or the model's."""
        setting = self.context.config.evaluation.temperature
        return setting != self.context.run.config.evaluation.temperature or setting not in (
            None,
            self.model.temperature,
        )

    def keep_settings(self) -> None:
        """Writes the settings that the model keeps into the run, and removes the results of the earlier model."""
        run = self.context.run
        kept = {name: getattr(self.context.config.evaluation, name) for name in KEPT_IN_MODEL}
        config = replace(run.config, evaluation=replace(run.config.evaluation, **kept))
        if config != run.config:
            run.write_config(config)
        # After the settings: without results a run accepts only its own, and the same command must still complete it.
        run.remove("results.json", *(ADJUSTED_RESULTS if self.average_changed else ()))


@contextmanager
def open_model(run: Run, config: Config) -> Iterator[OpenedModel]:
    """Opens a trained run with these settings; within it, no other process writes to the run.

    Raises:
        InputError: another process uses it; its data are missing or have changed; or the settings do not fit the model.
    """
    signals = Signals(GRACE)
    with init_distributed(config.device) as group, signals.caught(), ExitStack() as stack:
        run.writes = group.is_main
        stack.enter_context(run.lock())
        context = open_context(run, config, group, signals)
        stack.enter_context(context.runtime.tf32(config.training.tf32))
        model, metadata = run.load_model()
        metadata = check_match(metadata, context)
        for name in KEPT_IN_MODEL:
            setting, current = getattr(config.evaluation, name), getattr(run.config.evaluation, name)
            if setting != current and not run.is_finished and not run.is_converted:
                raise InputError(
                    f"{run.folder} is not finished, and its evaluation.{name} is {current}; it can be changed after "
                    f"training. Finish it with: longtail train --resume {run.folder}"
                )
        average = config.evaluation.average
        average_changed = {average} != {model.average, run.config.evaluation.average}
        if average != model.average:
            model.average = average
            metadata = replace(metadata, threshold_for="")  # it was chosen for another average
        if context.skipped is not None:
            run.write_skipped(context.skipped)
        yield OpenedModel(context, context.to_device(model), metadata, context.eval_loaders(), average_changed)


def check_match(trained: ModelMetadata, context: RunContext) -> ModelMetadata:
    """Checks that data and settings are those of a trained model; adds to its metadata what a conversion lacks.

    Raises:
        InputError: they are not.
    """
    run, config, current = context.run, context.config, context.new_metadata()
    if not trained.class_counts and len(current.class_names) == len(trained.class_names):  # converted
        trained = replace(trained, class_names=current.class_names, class_counts=current.class_counts)
    if trained.class_names != current.class_names:
        raise InputError(f"{run.folder}: was trained on other classes than those of data set '{config.data.name}'")
    if trained.training_images and trained.training_images != current.training_images:
        raise InputError(
            f"{run.folder}: the training images of data set '{config.data.name}' are not those of the training (added, "
            "removed or split differently), so some might be test images now; put the files back as they were"
        )
    differing = [
        f"'{label}': {now:,} instead of {then:,}"
        for label, now, then in zip(current.class_names, current.class_counts, trained.class_counts, strict=True)
        if now != then
    ]
    if differing:
        raise InputError(
            f"{run.folder}: data set '{config.data.name}' has other class_counts than the training: "
            f"{shortened_list(differing, 3)}; check data.imbalance, data.imbalance_factor and data.val_fraction"
        )
    # Earlier versions wrote fewer arguments.
    common = current.architecture.keys() & trained.architecture.keys()
    if trained.classifier:
        common -= {"head", "scale"}
    current_values, trained_values = (
        asdict(side) | {"architecture": {name: side.architecture[name] for name in sorted(common)}}
        for side in (current, trained)
    )
    for name in ("architecture", "image_size", "resize", "mean", "std", "interpolation"):
        if current_values[name] != trained_values[name]:
            raise InputError(
                f"{run.folder}: config.yaml asks for {name} {current_values[name]}, but the model was trained "
                f"with {trained_values[name]}"
            )
    return trained
