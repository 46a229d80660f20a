"""`Config` -> the parts of a run: data, loaders, model, criterion, optimiser, learning rate."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.transforms.v2.functional import resize

from longtail.config import Config
from longtail.data.cache import decode_all, fits
from longtail.data.cifar import cifar
from longtail.data.digits import digits
from longtail.data.file_loader import FileLoader
from longtail.data.files import folder, list_files, published
from longtail.data.loading import Loader, MemoryLoader, Normalise
from longtail.data.splits import Dataset, Split
from longtail.data.transforms import default_resize, test_transform, train_transform
from longtail.errors import InputError
from longtail.losses import CrossEntropyLoss, LDAMLoss, RIDELoss
from longtail.schedules import cosine_rate, epoch_of, step_multiplier

FILE_IMAGE_SIZE = 224


def load_data(config: Config) -> Dataset:
    """The data set with its long tail and its validation part.

    Raises:
        InputError: files are absent or wrong, or the settings do not fit them.
    """
    data = config.data
    dataset = _source(config)
    if data.imbalance != "none":
        dataset = dataset.imbalanced(data.imbalance, data.imbalance_factor, data.subset_seed)
    if data.val_fraction > 0:
        dataset = dataset.with_validation(data.val_fraction, data.subset_seed)
    if config.training.validate_every > 0 and dataset.val is None:
        raise InputError(
            f"training.validate_every is {config.training.validate_every}, but {data.name} has no validation part; "
            "set data.val_fraction to hold one out of the training images"
        )
    return dataset


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
    if data.name == "list":
        lists = [None if name is None else root / name for name in (data.train_list, data.val_list, data.test_list)]
        train, val, test = lists
        assert train is not None
        assert test is not None
        return list_files(root, train, val, test, names)
    return published(data.name, root, names)


def image_sizes(config: Config, dataset: Dataset) -> tuple[int, int]:
    """Pixels of an image's sides as the network sees it, and of the shorter side before the central crop."""
    data, pixels = config.data, dataset.train.pixels
    if pixels is not None:
        if data.resize is not None:
            raise InputError(f"data.resize is for image files; {data.name} is brought to data.image_size as it is")
        size = data.image_size or pixels.shape[1]
        return size, size
    size = data.image_size or FILE_IMAGE_SIZE
    return size, data.resize or default_resize(size)


def train_loader(config: Config, dataset: Dataset, device: torch.device) -> Loader:
    """Shuffled, augmented training images."""
    augmentation = config.augmentation
    split = _in_memory(config, dataset, dataset.train)
    options: dict[str, Any] = {"seed": config.seed, "shuffle": True, **_loader_options(config, device)}
    if split.pixels is not None:
        if augmentation.crop == "resized":
            raise InputError(
                f"augmentation.crop 'resized' needs image files; {config.data.name} takes 'padded' or 'none'"
            )
        padding = augmentation.padding if augmentation.crop == "padded" else 0
        return MemoryLoader(
            split,
            config.training.batch_size,
            padding=padding,
            flip=augmentation.flip,
            rotation=augmentation.rotation,
            **options,
        )
    size, before_crop = image_sizes(config, dataset)
    transform = train_transform(
        size,
        augmentation.crop,
        augmentation.padding,
        augmentation.scale,
        augmentation.flip,
        augmentation.rotation,
        augmentation.color_jitter,
        before_crop,
    )
    return FileLoader(split, transform, config.training.batch_size, workers=_workers(config), **options)


def eval_loader(config: Config, dataset: Dataset, split: Split, device: torch.device) -> Loader:
    """Images in their own order, as they are."""
    split = _in_memory(config, dataset, split)
    if split.pixels is not None:
        return MemoryLoader(split, config.evaluation.batch_size, **_loader_options(config, device))
    transform = test_transform(*image_sizes(config, dataset))
    return FileLoader(
        split,
        transform,
        config.evaluation.batch_size,
        workers=_workers(config),
        **_loader_options(config, device),
    )


def _workers(config: Config) -> int:
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(config.data.workers, processors)


def _loader_options(config: Config, device: torch.device) -> dict[str, Any]:
    return {"device": device, "normalise": Normalise(config.data.mean, config.data.std, device)}


def _in_memory(config: Config, dataset: Dataset, split: Split) -> Split:
    """The split with decoded pixels of the right size, where that is possible and wanted."""
    size, before_crop = image_sizes(config, dataset)
    if split.pixels is None:
        num_images = sum(len(part) for part in (dataset.train, dataset.val, dataset.test) if part is not None)
        if config.augmentation.crop == "resized" or not fits(num_images, size, config.data.cache_gib):
            return split
        return decode_all(split, test_transform(size, before_crop))
    if split.pixels.shape[1] == size:
        return split
    images = torch.from_numpy(split.pixels).permute(0, 3, 1, 2)
    pixels = resize(images, [size, size], antialias=True).permute(0, 2, 3, 1).numpy()
    return Split(split.labels, pixels=np.ascontiguousarray(pixels))


def architecture(config: Config, dataset: Dataset) -> dict[str, Any]:
    """The arguments of `longtail.create_model`, but for where weights come from."""
    model = config.model
    return {
        "name": model.backbone,
        "num_classes": dataset.num_classes,
        "num_experts": model.num_experts,
        "width": model.width,
        "head": model.head,
        "scale": model.scale,
        "expert_stages": model.expert_stages,
        "image_size": image_sizes(config, dataset)[0],
    }


def criterion(config: Config, class_counts: list[int]) -> CrossEntropyLoss:
    """The loss of the experts."""
    loss = config.loss
    after = loss.reweight_after
    options: dict[str, Any] = {
        "reweight_after": None if after is None else epoch_of(after, config.training.epochs),
        "reweight_beta": loss.reweight_beta,
        "collaborative": loss.collaborative,
    }
    if loss.name == "cross_entropy":
        return CrossEntropyLoss(class_counts, **options)
    options |= {"max_margin": loss.max_margin, "scale": config.model.scale}
    if loss.name == "ldam":
        return LDAMLoss(class_counts, **options)
    return RIDELoss(
        class_counts,
        diversity_factor=loss.diversity_factor,
        diversity_temperature=loss.diversity_temperature,
        temperature_spread=loss.temperature_spread,
        **options,
    )


def optimizer(config: Config, task: nn.Module) -> torch.optim.Optimizer:
    """Over every parameter of the task."""
    training = config.training
    if training.optimizer == "adamw":
        return torch.optim.AdamW(task.parameters(), training.learning_rate, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        task.parameters(),
        training.learning_rate,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )


def learning_rate(config: Config) -> Callable[[float], float]:
    """The rate at a point of training, in epochs from 0 with a fraction."""
    training = config.training
    epochs = training.epochs
    warmup = epoch_of(training.warmup, epochs)
    if training.schedule == "cosine":
        return lambda epoch: cosine_rate(epoch, epochs, training.learning_rate, training.final_learning_rate, warmup)
    milestones = [epoch_of(milestone, epochs) for milestone in training.milestones]
    return lambda epoch: training.learning_rate * step_multiplier(int(epoch), milestones, training.decay, warmup)
