"""What every stage of a run needs: its folder, settings, data, device and signals."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longtail.config.recipes import config_fingerprint
from longtail.config.schema import Config
from longtail.data.build import LoaderFactory, preprocessing
from longtail.data.corrupt_images import CorruptImage
from longtail.data.loaders import EpochOrder, Loader
from longtail.data.sources import source_info
from longtail.data.splits import DataSplits, ImageSplit
from longtail.data.views import Views
from longtail.models.backbones import input_format
from longtail.models.build import architecture, head_options, router_options
from longtail.models.multi_expert import MultiExpert
from longtail.runs.model_file import ModelMetadata
from longtail.runs.run import Run
from longtail.runtime.device import Runtime
from longtail.runtime.process import Signals
from longtail.tracking.trackers import Trackers
from longtail.utils.errors import InputError


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
    def _loaders(self) -> LoaderFactory:
        config = self.config
        form = preprocessing(config.data, config.model.backbone, self.dataset)
        return LoaderFactory(self.dataset, config.data, config.augmentation, form, self.runtime, config.seed)

    @property
    def decodes_repeatedly(self) -> bool:
        """Whether image files are decoded in each epoch instead of once."""
        return self._loaders.decodes_repeatedly

    def train_loader(self) -> Loader:
        """Augmented training images: this process's share of every batch."""
        return self._loaders.train(self.config.training, self.config.loss.label_smoothing)

    def shuffled_loader(self) -> Loader:
        """All training images, augmented but not mixed, in a new order in each epoch."""
        return self._loaders.shuffled(self.config.training.batch_size)

    def balanced_loader(self, batch_size: int) -> Loader:
        """Class-balanced draws of the training images, augmented but not mixed: this process's share of every batch."""
        return self._loaders.balanced(batch_size)

    def views_loader(self, split: ImageSplit, flip: bool = True) -> Loader:
        """Images in their own order, augmented as for training, anew in each epoch; ``flip`` False: not mirrored."""
        return self._loaders.views(split, self.config.training.batch_size, flip)

    def train_order(self) -> EpochOrder:
        """The training images of each epoch: this process's share of every batch."""
        return self._loaders.train_order(self.config.training)

    def with_soft_targets(self, loader: Loader) -> Loader:
        """Another loader of the training images, with the soft targets that are set, if any."""
        return self._loaders.with_soft_targets(loader, self.config.loss.label_smoothing)

    def eval_loader(self, split: ImageSplit, views: Views = "one") -> Loader:
        """Images in their own order, without augmentation; or the views of each."""
        return self._loaders.eval(split, self.config.evaluation.batch_size, views)

    def eval_pixels(self, split: ImageSplit) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Returns images as test images are cropped, (N, 3, S, S), and their labels (N,)."""
        loader = self.eval_loader(split)
        batches = [self._loaders.pixels(batch.inputs).cpu() for batch in loader.epoch(0)]
        return torch.cat(batches).contiguous().numpy(), split.labels

    def new_metadata(self) -> ModelMetadata:
        """The metadata of the model before any training."""
        form = self._loaders.preprocessing
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
