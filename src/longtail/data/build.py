"""`Config` -> data set and loaders."""

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from longtail.config.schema import Config
from longtail.data import corrupt_images
from longtail.data.corrupt_images import CorruptImage
from longtail.data.fast_crop import FileCrop
from longtail.data.image_loader import FileLoader
from longtail.data.loaders import Loader, MemoryLoader, Normalise
from longtail.data.memory_cache import decode_all, fits
from longtail.data.mixup import MixedLoader
from longtail.data.samplers import Sampler, sampler
from longtail.data.sources.cifar import cifar
from longtail.data.sources.digits import digits
from longtail.data.sources.files import folder, list_files, published
from longtail.data.splits import Dataset, Split
from longtail.data.transforms import Interpolation, Transform, default_resize, eval_transform, train_transform
from longtail.models.backbones import input_format
from longtail.runtime.device import Runtime
from longtail.runtime.process import num_processors
from longtail.runtime.shard import Shard
from longtail.utils.errors import InputError

ShowProgress = Callable[[Iterable[CorruptImage | None], int], Iterable[CorruptImage | None]]


def load_data(config: Config, skipped: Collection[CorruptImage] = ()) -> Dataset:
    """The data set with its long tail and its validation part.

    Which images are held out is drawn before ``skipped`` are left out, so that it does not depend on them.

    Raises:
        InputError: files are absent or wrong, or the settings do not fit them.
    """
    data = config.data
    dataset = _source(config)
    if data.imbalance != "none":
        spare = 0 if data.val_fraction else data.val_spare
        dataset = dataset.imbalanced(data.imbalance, data.imbalance_factor, data.subset_seed, spare)
    if data.val_fraction > 0:
        dataset = dataset.with_validation(data.val_fraction, data.subset_seed)
    if config.training.validate_every > 0 and dataset.val is None:
        raise InputError(
            f"training.validate_every is {config.training.validate_every}, but {data.name} has no validation part; "
            "set data.val_fraction to hold one out of the training images"
        )
    return corrupt_images.without(dataset, skipped, Path(data.root))


def find_corrupt_images(
    config: Config, dataset: Dataset, watch: ShowProgress = lambda walk, total: walk
) -> list[CorruptImage]:
    """The image files that do not decode. All of them are decoded for that, which takes its time.

    Args:
        config: the settings.
        dataset: made by `load_data` with them.
        watch: may show how far the walk over so many images is; yields what it is given.

    Raises:
        InputError: there are more than the settings allow.
    """
    root, paths = Path(config.data.root), corrupt_images.picture_files(dataset)
    bad = [found for found in watch(corrupt_images.examine(paths, root), len(paths)) if found is not None]
    corrupt_images.check_share(bad, len(paths), config.data.max_corrupt_images)
    return bad


def _source(config: Config) -> Dataset:
    data = config.data
    root = Path(data.root)
    if data.name == "digits":
        return digits(data.subset_seed)
    if data.name in ("cifar10", "cifar100"):
        return cifar(data.name, root)
    if data.name == "folder":
        return folder(root, data.test_fraction, data.subset_seed)
    names = root / data.class_names if data.class_names else None
    outside = data.allow_outside_root
    if data.name == "list":
        lists = [None if name is None else root / name for name in (data.train_list, data.val_list, data.test_list)]
        train, val, test = lists
        assert train is not None
        assert test is not None
        return list_files(root, train, val, test, names, allow_outside=outside)
    return published(data.name, root, names, allow_outside=outside)


class Preprocessing(NamedTuple):
    """How pictures become what the network takes."""

    image_size: int
    """Height and width, pixels"""
    resize: int
    """Shorter side before the central crop"""
    interpolation: Interpolation
    mean: tuple[float, ...]
    std: tuple[float, ...]


def preprocessing(config: Config, dataset: Dataset) -> Preprocessing:
    """The settings' own, or else those the backbone was published with; small images that lie decoded keep their size.

    Raises:
        InputError: ``data.resize`` is set where nothing is cropped.
    """
    data, pixels = config.data, dataset.train.pixels
    published = input_format(config.model.backbone)
    size = data.image_size or (published.image_size if pixels is None else pixels.shape[1])
    if pixels is not None and data.resize is not None:
        raise InputError(f"data.resize is for image files; {data.name} is brought to data.image_size as it is")
    return Preprocessing(
        image_size=size,
        resize=data.resize or (default_resize(size) if pixels is None else size),
        interpolation=data.interpolation or published.interpolation,
        mean=data.mean or published.mean,
        std=data.std or published.std,
    )


def train_loader(config: Config, dataset: Dataset, runtime: Runtime) -> Loader:
    """Augmented training images as ``training.sampling`` has them: this process's share of every batch.

    Raises:
        InputError: a batch cannot be shared among so many processes; or a setting does not fit the images.
    """
    augmentation, smoothing = config.augmentation, config.loss.label_smoothing
    least, given = 2 * runtime.group.size, config.training.batch_size
    if runtime.group.size > 1 and min(given, len(dataset.train)) < least:
        raise InputError(
            f"training.batch_size is {given} for {len(dataset.train)} images; {runtime.group.size} processes share "
            f"every batch, and need at least {least}"
        )
    training, labels = config.training, torch.from_numpy(dataset.train.labels)
    drawing = None if training.sampling == "shuffled" else sampler(training.sampling, labels, training.epochs)
    loader = _augmented_loader(config, dataset, dataset.train, runtime.group.shard, runtime, sampler=drawing)
    mixing = {"mixup": augmentation.mixup, "cutmix": augmentation.cutmix, "label_smoothing": smoothing}
    if not any(mixing.values()) and not augmentation.random_erasing:
        return loader
    erasing = augmentation.random_erasing
    return MixedLoader(
        loader, dataset.num_classes, **mixing, random_erasing=erasing, seed=config.seed, device=runtime.device
    )


def shuffled_loader(config: Config, dataset: Dataset, runtime: Runtime) -> Loader:
    """All training images, augmented and not mixed, in another order in each epoch; processes have whole batches."""
    return _augmented_loader(config, dataset, dataset.train, runtime.group.eval_shard, runtime)


def views_loader(config: Config, dataset: Dataset, split: Split, runtime: Runtime) -> Loader:
    """Images in their own order, augmented as for training, anew in each epoch; processes have whole batches."""
    return _augmented_loader(config, dataset, split, runtime.group.eval_shard, runtime, shuffle=False)


def _augmented_loader(
    config: Config,
    dataset: Dataset,
    split: Split,
    shard: Shard,
    runtime: Runtime,
    *,
    shuffle: bool = True,
    sampler: Sampler | None = None,
) -> Loader:
    augmentation = config.augmentation
    split = _in_memory(config, dataset, split)
    options: dict[str, Any] = {"seed": config.seed, "shuffle": shuffle, "sampler": sampler, "shard": shard}
    options |= _loader_options(config, dataset, runtime)
    if split.pixels is not None:
        for name, value, others in (("crop", "resized", "'padded' or 'none'"), ("rand_augment", None, "none")):
            given = getattr(augmentation, name)
            if given == value if value else given is not None:
                raise InputError(f"augmentation.{name} '{given}' needs image files; {config.data.name} takes {others}")
        padding = augmentation.padding if augmentation.crop == "padded" else 0
        return MemoryLoader(
            split,
            config.training.batch_size,
            padding=padding,
            flip=augmentation.flip,
            rotation=augmentation.rotation,
            **options,
        )
    transform = _file_transform(config, preprocessing(config, dataset))
    return FileLoader(split, transform, config.training.batch_size, workers=_workers(config), **options)


def _file_transform(config: Config, form: Preprocessing) -> Transform | FileCrop:
    augmentation, size = config.augmentation, form.image_size
    params = (augmentation.scale, augmentation.flip, augmentation.rotation, augmentation.color_jitter)
    others = (form.interpolation, augmentation.rand_augment, form.mean)
    if augmentation.crop == "resized" and augmentation.fast_crops:
        return FileCrop(size, *params, *others)
    return train_transform(size, augmentation.crop, augmentation.padding, *params, form.resize, *others)


def eval_loader(config: Config, dataset: Dataset, split: Split, runtime: Runtime) -> Loader:
    """Images in their own order, as they are; each process has whole batches of them."""
    split = _in_memory(config, dataset, split)
    options = {**_loader_options(config, dataset, runtime), "shard": runtime.group.eval_shard}
    if split.pixels is not None:
        return MemoryLoader(split, config.evaluation.batch_size, **options)
    transform = eval_transform(*preprocessing(config, dataset)[:3])
    return FileLoader(split, transform, config.evaluation.batch_size, workers=_workers(config), **options)


def _workers(config: Config) -> int:
    return min(config.data.workers, num_processors())


def _loader_options(config: Config, dataset: Dataset, runtime: Runtime) -> dict[str, Any]:
    form = preprocessing(config, dataset)
    return {"device": runtime.device, "normalise": Normalise(form.mean, form.std, runtime.device)}


def _in_memory(config: Config, dataset: Dataset, split: Split) -> Split:
    """The split with decoded pixels of the right size, where that is possible and wanted."""
    form, augmentation = preprocessing(config, dataset), config.augmentation
    if split.pixels is None:
        num_images = sum(len(part) for part in (dataset.train, dataset.val, dataset.test) if part is not None)
        anew = augmentation.crop == "resized" or augmentation.rand_augment is not None
        if anew or not fits(num_images, form.image_size, config.data.cache_gib):
            return split
        return decode_all(split, eval_transform(*form[:3]))
    size = form.image_size
    if split.pixels.shape[1] == size:
        return split
    images = torch.from_numpy(split.pixels).permute(0, 3, 1, 2)
    mode = InterpolationMode(form.interpolation)
    pixels = resize(images, [size, size], mode, antialias=True).permute(0, 2, 3, 1).numpy()
    return Split(split.labels, pixels=np.ascontiguousarray(pixels))
