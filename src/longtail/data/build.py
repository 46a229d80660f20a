"""Settings -> data set and loaders."""

import logging
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from longtail.config.schema import AugmentationConfig, DataConfig, TrainingConfig
from longtail.data import corrupt_images
from longtail.data.batch_augment import BatchAugmentation
from longtail.data.copies import without_test_copies
from longtail.data.corrupt_images import CorruptImage
from longtail.data.fast_crop import FileCrop
from longtail.data.image_loader import ImageLoader
from longtail.data.loaders import EpochOrder, ImagesLoader, Loader, MemoryLoader, Normalise
from longtail.data.memory_cache import decode_all
from longtail.data.mixup import MixedLoader, MixSettings
from longtail.data.samplers import LongTailSampler
from longtail.data.sources import load_source
from longtail.data.splits import DataSplits, ImageSplit
from longtail.data.transforms import (
    ImageAugmentation,
    Transform,
    default_resize,
    eval_transform,
    train_transform,
)
from longtail.data.views import NUM_VIEWS, ViewsLoader, source_size
from longtail.models.backbones import input_format
from longtail.runtime.device import Runtime
from longtail.runtime.process import num_processors
from longtail.utils.choices import Interpolation, Views
from longtail.utils.console import with_bar
from longtail.utils.errors import InputError, one_line
from longtail.utils.format import pluralize, shortened_list

logger = logging.getLogger(__name__)


def load_data(settings: DataConfig, skipped: Collection[CorruptImage] = ()) -> DataSplits:
    """Loads the data set with its long tail and its validation split.

    Held-out images are drawn before ``skipped`` ones are removed, so that the draw does not depend on them.

    Raises:
        InputError: files are missing or wrong, or the settings do not fit them.
    """
    dataset = load_source(settings)
    if settings.imbalance != "none":
        spare = 0 if settings.val_fraction else settings.val_spare
        dataset = dataset.imbalanced(settings.imbalance, settings.imbalance_factor, settings.subset_seed, spare)
    if settings.val_fraction > 0:
        dataset = dataset.with_validation(settings.val_fraction, settings.subset_seed)
    dataset = corrupt_images.without(dataset, skipped, Path(settings.root))
    return without_test_copies(dataset, Path(settings.root)) if settings.duplicates == "drop-test" else dataset


def find_corrupt_images(settings: DataConfig, dataset: DataSplits) -> list[CorruptImage]:
    """Decodes all image files and returns those that do not decode.

    Raises:
        InputError: more images are corrupt than the settings allow.
    """
    paths = corrupt_images.image_files(dataset)
    corrupt = _examined(paths, Path(settings.root), "checking images")
    corrupt_images.check_share(corrupt, len(paths), settings.max_corrupt_images)
    if corrupt:
        images = pluralize(len(corrupt), "image that does", "images that do")
        logger.info("Skipped %s not decode, see %s", images, corrupt_images.SKIPPED_FILE)
    return corrupt


def find_corrupt_test_images(settings: DataConfig, dataset: DataSplits, in_full: bool) -> list[CorruptImage]:
    """Decodes the validation and test images and returns those that do not decode.

    Args:
        settings: of the data.
        dataset: the images.
        in_full: decode the training images as well; otherwise only their headers are read.

    Raises:
        InputError: training images do not decode.
    """
    root, paths = Path(settings.root), corrupt_images.image_files(dataset)
    training = set(() if dataset.train.paths is None else dataset.train.paths)
    headers = [path for path in paths if path in training and not in_full]
    corrupt = _examined(headers, root, "reading headers", header_only=True)
    corrupt += _examined(paths[len(headers) :], root, "checking images")
    corrupt_images.check_training_images(dataset, corrupt, root)
    if corrupt:
        images = pluralize(len(corrupt), "validation or test image that does", "validation or test images that do")
        shown = shortened_list([f"{image.path} ({image.reason})" for image in corrupt], 3)
        file = corrupt_images.SKIPPED_FILE
        logger.warning("Left out %s not decode, see %s: %s", images, file, one_line(shown))
    return corrupt


def _examined(paths: list[Path], root: Path, what: str, *, header_only: bool = False) -> list[CorruptImage]:
    walk = corrupt_images.examine(paths, root, header_only)
    return [found for found in with_bar(walk, what, len(paths)) if found is not None]


class Preprocessing(NamedTuple):
    """How images become network inputs."""

    image_size: int
    """Height and width, pixels"""
    resize: int
    """Shorter side before the central crop, pixels"""
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]


def preprocessing(settings: DataConfig, backbone: str, dataset: DataSplits) -> Preprocessing:
    """Returns the preprocessing that is set, or else the one of the backbone. Decoded images keep their size.

    Raises:
        InputError: ``data.resize`` is set for decoded images, which are not cropped.
    """
    pixels, published = dataset.train.pixels, input_format(backbone)
    size = settings.image_size or (published.image_size if pixels is None else pixels.shape[1])
    if pixels is not None and settings.resize is not None:
        raise InputError(f"data.resize is for image files; {settings.name} is resized to data.image_size directly")
    return Preprocessing(
        image_size=size,
        resize=settings.resize or (default_resize(size) if pixels is None else size),
        interpolation=settings.interpolation or published.interpolation,
        mean=settings.mean or published.mean,
        std=settings.std or published.std,
    )


@dataclass(frozen=True)
class LoaderFactory:
    """Makes the loaders of a data set."""

    dataset: DataSplits
    data: DataConfig
    augmentation: AugmentationConfig
    preprocessing: Preprocessing
    runtime: Runtime
    seed: int
    """Of order and augmentation"""

    decoded: dict[str, ImageSplit] = field(default_factory=dict, init=False, compare=False)
    """Splits of image files that have been decoded into memory, by name"""

    def train(self, training: TrainingConfig, label_smoothing: float = 0.0) -> Loader:
        """Augmented training images, sampled and mixed as set: this process's share of every batch.

        Raises:
            InputError: a batch is too small for so many processes; or a setting does not fit the images.
        """
        order = self.train_order(training)
        views = self._views(self.augmentation)
        return self.with_soft_targets(self._augmented(self.dataset.train, order, views), label_smoothing)

    def train_order(self, training: TrainingConfig) -> EpochOrder:
        """The training images of each epoch, sampled as set.

        Raises:
            InputError: a batch is too small for so many processes.
        """
        split, group = self.dataset.train, self.runtime.group
        if group.size > 1 and min(training.batch_size, len(split)) < 2 * group.size:
            raise InputError(
                f"training.batch_size is {training.batch_size} for {len(split)} images; {group.size} processes share "
                f"every batch and need at least {2 * group.size}"
            )
        sampler = None
        if training.sampling != "shuffled":
            sampler = LongTailSampler(split.labels, training.sampling, epochs=training.epochs)
        return EpochOrder(len(split), training.batch_size, self.seed, True, sampler, group.shard)

    def with_soft_targets(self, loader: Loader, label_smoothing: float) -> Loader:
        """The loader with batches that are mixed and erased as set, if at all."""
        how = self.augmentation
        mixed = {name: getattr(how, name) for name in MixSettings._fields if name != "label_smoothing"}
        mix = MixSettings(**mixed, label_smoothing=label_smoothing)
        if mix.are_none:
            return loader
        device = self.runtime.device
        return MixedLoader(loader, self.dataset.num_classes, mix, seed=self.seed, device=device)

    def shuffled(self, batch_size: int) -> ImagesLoader:
        """All training images, augmented but not mixed, in a new order in each epoch; full batches."""
        split = self.dataset.train
        order = EpochOrder(len(split), batch_size, self.seed, shuffle=True, shard=self.runtime.group.eval_shard)
        return self._augmented(split, order, self._views(self.augmentation)[:1])

    def balanced(self, batch_size: int) -> Loader:
        """Class-balanced draws of the training images, augmented but not mixed: this process's share of every batch."""
        split = self.dataset.train
        sampler = LongTailSampler(split.labels, "class-balanced")
        order = EpochOrder(len(split), batch_size, self.seed, True, sampler, self.runtime.group.shard)
        return self._augmented(split, order, self._views(self.augmentation)[:1])

    def views(self, split: ImageSplit, batch_size: int, flip: bool = True) -> Loader:
        """Images in their own order, augmented as for training, anew in each epoch; full batches.

        Args:
            split: the images.
            batch_size: of all processes together.
            flip: False leaves out the mirror images.
        """
        order = EpochOrder(len(split), batch_size, self.seed, shard=self.runtime.group.eval_shard)
        how = replace(self.augmentation, flip=self.augmentation.flip and flip)
        return self._augmented(split, order, self._views(how)[:1])

    def eval(self, split: ImageSplit, batch_size: int, views: Views = "one") -> Loader:
        """Images in their own order, without augmentation; full batches, which hold all views of an image.

        Raises:
            InputError: the images are too small for the views.
        """
        if views != "one":
            form = self.preprocessing
            wide = form._replace(image_size=source_size(views, form.image_size, form.resize))
            images = replace(self, preprocessing=wide).eval(split, max(1, batch_size // NUM_VIEWS[views]))
            return ViewsLoader(images, views, form.image_size)
        order = EpochOrder(len(split), batch_size, self.seed, shard=self.runtime.group.eval_shard)
        split = self._in_memory(split)
        if split.pixels is not None:
            return MemoryLoader(split, order, device=self.runtime.device, normalise=self._normalise)
        return self._image_loader(split, [eval_transform(*self.preprocessing[:3])], order)

    def pixels(self, inputs: Tensor) -> Tensor:
        """Returns the pixels of normalised images: (B, 3, H, W), uint8."""
        return self._normalise.inverse(inputs)

    @property
    def decodes_repeatedly(self) -> bool:
        """Whether image files are decoded in each epoch instead of once."""
        dataset, form = self.dataset, self.preprocessing
        if dataset.train.pixels is not None:
            return False
        needs_files = self.augmentation.crop == "resized" or self.augmentation.rand_augment is not None
        num_images = sum(map(len, dataset.splits.values()))
        return needs_files or num_images * form.image_size**2 * 3 > self.data.cache_gib * 2**30

    @staticmethod
    def _views(how: AugmentationConfig) -> list[AugmentationConfig]:
        """The augmentation of each view of an image in a step; the weak view is the first one."""
        if how.views == "one":
            return [how]
        weak = replace(how, views="one", rand_augment=None, auto_augment="none", cutout=0)
        return [weak, replace(how, views="one", rotation=0.0)]

    def _augmented(self, split: ImageSplit, order: EpochOrder, views: list[AugmentationConfig]) -> ImagesLoader:
        how, split = self.augmentation, self._in_memory(split)
        if split.pixels is None:
            return self._image_loader(split, [self._train_transform(view) for view in views], order)
        if how.crop == "resized":
            raise InputError(
                f"augmentation.crop 'resized' needs image files; {self.data.name} takes 'padded' or 'none'"
            )
        if how.rand_augment is not None:
            raise InputError(
                f"augmentation.rand_augment '{how.rand_augment}' needs image files; {self.data.name} takes none"
            )
        changes, *others = (
            BatchAugmentation(
                view.padding if view.crop == "padded" else 0, view.flip, view.rotation, view.auto_augment, view.cutout
            )
            for view in views
        )
        return MemoryLoader(
            split,
            order,
            device=self.runtime.device,
            normalise=self._normalise,
            augmentation=None if changes == BatchAugmentation() and not others else changes,
            other_views=others,
        )

    def _image_loader(
        self, split: ImageSplit, transforms: list[Transform | FileCrop], order: EpochOrder
    ) -> ImagesLoader:
        return ImageLoader(
            split,
            transforms[0],
            order,
            device=self.runtime.device,
            normalise=self._normalise,
            workers=min(self.data.workers, num_processors()),
            other_views=transforms[1:],
        )

    def _train_transform(self, how: AugmentationConfig) -> Transform | FileCrop:
        form = self.preprocessing
        augmentation = ImageAugmentation(**{part.name: getattr(how, part.name) for part in fields(ImageAugmentation)})
        if how.crop == "resized" and how.fast_crops:
            return FileCrop(form.image_size, augmentation, form.interpolation, form.mean)
        return train_transform(form.image_size, augmentation, form.resize, form.interpolation, form.mean)

    @cached_property
    def _normalise(self) -> Normalise:
        return Normalise(self.preprocessing.mean, self.preprocessing.std, self.runtime.device)

    def _in_memory(self, split: ImageSplit) -> ImageSplit:
        """The split with decoded images of the right size, if they fit into memory and need no new crop each time."""
        form = self.preprocessing
        if split.pixels is None:
            return split if self.decodes_repeatedly else self._decoded_once(split)
        size = form.image_size
        if split.pixels.shape[1] == size:
            return split
        images = torch.from_numpy(split.pixels).permute(0, 3, 1, 2)
        mode = InterpolationMode(form.interpolation)
        pixels = resize(images, [size, size], mode, antialias=True).permute(0, 2, 3, 1).numpy()
        return ImageSplit(split.labels, pixels=np.ascontiguousarray(pixels))

    def _decoded_once(self, split: ImageSplit) -> ImageSplit:
        """The split with decoded images, which are kept unless it is a part of a split."""
        name = next((name for name, known in self.dataset.splits.items() if known is split), "")
        if name in self.decoded:
            return self.decoded[name]
        decoded = decode_all(split, eval_transform(*self.preprocessing[:3]))
        if name:
            self.decoded[name] = decoded
        return decoded
