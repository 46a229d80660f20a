"""What every stage works with."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from rich.console import Console

from longtail.config.recipes import config_fingerprint
from longtail.config.schema import Config
from longtail.data import build as data_build
from longtail.data.corrupt_images import CorruptImage
from longtail.data.splits import Dataset
from longtail.models import build as model_build
from longtail.models.multi_expert import MultiExpert
from longtail.runs.model_file import ModelMetadata
from longtail.runs.run import Run
from longtail.runtime.device import Runtime
from longtail.runtime.process import Signals
from longtail.training.checkpoint import Checkpoint
from longtail.training.progress import say


@dataclass(frozen=True)
class RunContext:
    """What every stage works with."""

    run: Run
    config: Config
    dataset: Dataset
    runtime: Runtime
    console: Console
    signals: Signals = field(default_factory=Signals)
    skipped: list[CorruptImage] | None = None
    """Images that were left out because they do not decode; None where nobody looked"""

    def write_skipped(self) -> None:
        """Lists them in the run's folder, so that everything later leaves out the same."""
        if self.skipped is not None:
            self.run.write_skipped(self.skipped)

    @cached_property
    def training_images(self) -> str:
        """`Split.fingerprint` of what is trained on; of a million files it takes seconds."""
        return self.dataset.train.fingerprint(Path(self.config.data.root))

    def metadata(self) -> ModelMetadata:
        """The description of the model, before it has learnt anything."""
        return ModelMetadata(
            architecture=model_build.architecture(self.config, self.dataset),
            class_names=self.dataset.class_names,
            class_counts=tuple(self.dataset.class_counts),
            training_images=self.training_images,
            **data_build.preprocessing(self.config, self.dataset)._asdict(),
        )

    def on_device(self, model: MultiExpert) -> MultiExpert:
        """The same model on the device, in the layout that convolutions run fastest in; the loaders deliver it."""
        moved: MultiExpert = model.to(self.runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return moved

    @contextmanager
    def seeded_init(self) -> Iterator[None]:
        """Within it, first weights are drawn by the seed; the caller's random numbers are not ours to set."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)  # not a GPU's, which would stay set
            yield

    def checkpoint(self, stage: str, strict: bool = True) -> Checkpoint:
        """Where a stage goes on from; see `Checkpoint`."""
        return Checkpoint(
            self.run.checkpoint_path(stage),
            f"{config_fingerprint(self.config)}\n{self.training_images}",
            strict=strict,
            every=60 * self.config.training.checkpoint_every,
            group=self.runtime.group,
            signals=self.signals,
        )

    def say(self, text: str) -> None:
        """A line for the user."""
        say(self.console, text)
