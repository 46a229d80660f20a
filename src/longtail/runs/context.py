"""What every stage of a run needs: its folder, settings, data, device and signals."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from longtail.config.recipes import config_fingerprint
from longtail.config.schema import Config
from longtail.data.build import (
    LoaderFactory,
    find_corrupt_images,
    find_corrupt_test_images,
    load_data,
    preprocessing,
)
from longtail.data.corrupt_images import SKIPPED_FILE, CorruptImage, from_text, to_text, without
from longtail.data.loaders import Loader
from longtail.data.sources import source_info
from longtail.data.splits import DataSplits, ImageSplit
from longtail.models.backbones import input_format
from longtail.models.build import architecture, head_options, router_options
from longtail.models.multi_expert import MultiExpert
from longtail.runs.model_file import ModelMetadata
from longtail.runs.run import Run
from longtail.runtime.device import Runtime, pick_device, warn_slow_precision
from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.runtime.process import Signals
from longtail.tracking.trackers import Trackers
from longtail.utils.choices import Views
from longtail.utils.errors import InputError

EvalSplit = Literal["val", "test"]


@dataclass(frozen=True)
class RunContext:
    """What every stage of a run needs."""

    run: Run
    config: Config
    dataset: DataSplits
    runtime: Runtime
    signals: Signals = field(default_factory=Signals)
    skipped: list[CorruptImage] | None = None
    """Images that were skipped because they do not decode; None if images were not checked"""

    trackers: Trackers = field(default_factory=Trackers)
    """Where the metrics of the training are sent, besides the run folder"""

    @cached_property
    def training_images(self) -> str:
        """Fingerprint of the training images; for a million files it takes seconds."""
        return self.dataset.train.fingerprint(Path(self.config.data.root))

    @property
    def fingerprint(self) -> str:
        """Identifies the training: its settings and its images."""
        return f"{config_fingerprint(self.config)}\n{self.training_images}"

    @cached_property
    def loaders(self) -> LoaderFactory:
        """Makes the loaders of the images."""
        config = self.config
        form = preprocessing(config.data, config.model.backbone, self.dataset)
        return LoaderFactory(self.dataset, config.data, config.augmentation, form, self.runtime, config.seed)

    def eval_loader(self, split: ImageSplit, views: Views = "one") -> Loader:
        """Images in their own order, without augmentation; or the views of each."""
        return self.loaders.eval(split, self.config.evaluation.batch_size, views)

    def eval_loaders(self) -> dict[EvalSplit, Loader]:
        """The test split and, if there is one, the validation split, in the views that the settings ask for."""
        views, dataset = self.config.evaluation.views, self.dataset
        splits: dict[EvalSplit, ImageSplit | None] = {"test": dataset.test, "val": dataset.val}
        return {name: self.eval_loader(split, views) for name, split in splits.items() if split is not None}

    def eval_pixels(self, split: ImageSplit) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Returns images as test images are cropped, (N, 3, S, S), and their labels (N,)."""
        loader = self.eval_loader(split)
        batches = [self.loaders.pixels(batch.inputs).cpu() for batch in loader.epoch(0)]
        return torch.cat(batches).contiguous().numpy(), split.labels

    def new_metadata(self) -> ModelMetadata:
        """The metadata of the model before any training."""
        form = self.loaders.preprocessing
        return ModelMetadata(
            architecture=architecture(self.config.model, self.dataset.num_classes, form.image_size),
            class_names=self.dataset.class_names,
            class_counts=tuple(self.dataset.class_counts),
            training_images=self.training_images,
            **form._asdict(),
        )

    def to_device(self, model: MultiExpert) -> MultiExpert:
        """Moves a model to the device, in the memory layout in which convolutions are fastest."""
        return model.to(self.runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]

    @contextmanager
    def seeded_init(self) -> Iterator[None]:
        """Within it, initial weights are drawn with the run's seed. The caller's random state is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.config.seed)  # not a GPU's, which would stay set
            yield


def open_context(
    run: Run,
    config: Config,
    group: Group = SINGLE_PROCESS,
    signals: Signals | None = None,
    skipped: list[CorruptImage] | None = None,
) -> RunContext:
    """Finds the device, and loads the data of a run without the images that are skipped.

    Args:
        run: whose list of skipped images is used, if it has one.
        config: the settings.
        group: the processes.
        signals: of the process.
        skipped: another list.

    Raises:
        InputError: the device or data are missing or wrong; or too many images do not decode.
    """
    device, data = pick_device(config.device), config.data
    if skipped is None:
        skipped = run.skipped()
    with group.main_first():  # it may download the data
        dataset = load_data(data, skipped or ())
    if skipped is None and data.on_corrupt_image == "skip":
        skipped = _on_main(group, lambda: find_corrupt_images(data, dataset))
        dataset = without(dataset, skipped, Path(data.root))
    runtime = Runtime(device, config.training.precision, group)
    warn_slow_precision(device, config.training.precision)
    return RunContext(run, config, dataset, runtime, signals or Signals(), skipped)


def without_corrupt_test_images(context: RunContext, in_full: bool) -> RunContext:
    """Returns the context without validation and test images that do not decode; see `find_corrupt_test_images`."""
    data, dataset = context.config.data, context.dataset
    corrupt = _on_main(context.runtime.group, lambda: find_corrupt_test_images(data, dataset, in_full))
    if not corrupt:
        return context
    skipped = [*(context.skipped or ()), *corrupt]
    return replace(context, dataset=without(dataset, corrupt, Path(data.root)), skipped=skipped)


def _on_main(group: Group, find: Callable[[], list[CorruptImage]]) -> list[CorruptImage]:
    """Returns the images that the first process finds."""
    text = group.broadcast_object(os.fsdecode(to_text(find() if group.is_main else [])))
    return from_text(os.fsencode(text), Path(SKIPPED_FILE))


def planned_architecture(config: Config, num_classes: int | None = None) -> dict[str, Any]:
    """Returns the architecture after all stages, from the settings alone: with the last classifiers and the router.

    Args:
        config: the settings.
        num_classes: classes of a data set whose name does not tell.

    Raises:
        InputError: the number of classes is not known.
    """
    data, model, info = config.data, config.model, source_info(config.data.name)
    classes = info.num_classes if num_classes is None else num_classes
    if classes is None:
        raise InputError(
            f"the number of classes of data set '{data.name}' is not known without its data; set --num_classes"
        )
    size = data.image_size or info.image_size or input_format(model.backbone).image_size
    router = {"router": router_options(config.router)} if config.router.train else {}
    return architecture(model, classes, size) | head_options(config.classifier, model.scale) | router
