"""Converts a checkpoint file of the original code to a run folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from longtail.config.recipes import checked_types, load_recipe
from longtail.config.schema import (
    AugmentationConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    TrainingConfig,
)
from longtail.data.imbalance import imbalanced_counts
from longtail.data.sources.cifar import CLASS_NAMES
from longtail.data.transforms import default_resize
from longtail.interop.original.architecture import load_original
from longtail.interop.original.checkpoint import read_original
from longtail.models.resnet_cifar import BLOCKS_PER_STAGE
from longtail.runs.model_file import ModelMetadata
from longtail.runs.run import Run, new_run
from longtail.runtime.device import environment
from longtail.utils.errors import InputError

DATA_SETS = {10: "cifar10", 100: "cifar100", 365: "places-lt", 1000: "imagenet-lt", 8142: "inaturalist2018"}
"""Number of classes -> data set of the originals"""

RECIPES = {"inaturalist2018": "inaturalist2018-resnet50-ride", "places-lt": "places-lt-resnet152-ride"}
"""Data set -> recipe for ResNets whose augmentation the original used; for all others that of ImageNet-LT"""

CIFAR_IMAGES = {"cifar10": 5000, "cifar100": 500}
"""Training images of each class in the full data set"""

PROFILES = {"exp": "exponential", "step": "step"}
LOSSES = {"RIDELoss": "ride", "LDAMLoss": "ldam", "CrossEntropyLoss": "cross_entropy"}

# Setting -> its path in the original's config.json
TRAINING = {
    "epochs": "trainer.epochs",
    "batch_size": "data_loader.args.batch_size",
    "learning_rate": "optimizer.args.lr",
    "weight_decay": "optimizer.args.weight_decay",
    "momentum": "optimizer.args.momentum",
    "nesterov": "optimizer.args.nesterov",
    "decay": "lr_scheduler.args.gamma",
    "warmup": "lr_scheduler.args.warmup_epoch",
}
LOSS = {
    "reweight_after": "loss.args.reweight_epoch",
    "diversity_factor": "loss.args.additional_diversity_factor",
    "temperature_spread": "loss.args.reweight_factor",
}


def convert(file: str | Path, output: str | Path) -> Run:
    """Makes a run folder from a checkpoint of the original RIDE or RIDE-Swin.

    The network follows from the names and shapes of the weights, the data set from the number of classes, the settings
    from ``config.json`` in the same folder or else from the checkpoint.

    Raises:
        InputError: the file cannot be read or is not such a checkpoint, or ``output`` exists already.
    """
    file = Path(file)
    run = Run(output)
    is_continued = not run.config_path.exists() and run.environment().get("converted_from") == str(file)
    run = run if is_continued else new_run(file.stem, output)  # it was killed
    checkpoint = read_original(file)
    try:
        model, architecture = load_original(checkpoint.state_dict)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    path = file.with_name("config.json")
    original, source = (_read_settings(path), path) if path.is_file() else (checkpoint.config, file)
    num_classes = _find(original, "arch.args.num_classes")
    if num_classes not in (None, architecture["num_classes"]):
        raise InputError(f"{source} has {num_classes} classes, the weights have {architecture['num_classes']}")
    try:
        config = checked_types(_config(file.stem, original, architecture))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{source}: {error}") from error
    origin = {"converted_from": str(file), "converted_class": checkpoint.arch}
    with run.lock():
        metadata = _metadata(config.data, architecture, checkpoint.epoch)
        run.start(config, environment(torch.device("cpu"), 1) | origin, (model, metadata))
    return run


def _config(name: str, original: Mapping[str, Any], architecture: Mapping[str, Any]) -> Config:
    """Returns the settings of a run, from those of the original and the network."""
    backbone = architecture["name"]
    family = "cifar" if backbone in BLOCKS_PER_STAGE else "swin" if backbone.startswith("swin") else "resnet"
    data = _data(original, architecture, family)
    loss, training = LossConfig(), TrainingConfig()
    if original and "router" not in architecture:  # otherwise they are about the training of the router
        loss, training = _loss(original), _training(original)
    options: dict[str, Any] = {
        key: architecture.get(key) for key in ("num_experts", "width", "head", "scale", "expert_stages")
    }
    return Config(
        name=str(original.get("name", name)),
        data=data,
        augmentation=_augmentation(data.name, family),
        model=ModelConfig(backbone=backbone, **options),
        loss=loss,
        training=training,
        # RIDE-Swin has other shot limits than RIDE.
        evaluation=EvaluationConfig(many_above=99, few_below=21) if family == "swin" else EvaluationConfig(),
    )


def _data(original: Mapping[str, Any], architecture: Mapping[str, Any], family: str) -> DataConfig:
    # All fields are set, because timm's networks of the same name can have other values.
    data: dict[str, Any] = {
        "name": DATA_SETS.get(architecture["num_classes"], "folder"),
        "image_size": {"cifar": 32, "resnet": 224}.get(family) or int(architecture["name"].rsplit("_", 1)[1]),
        "interpolation": "bicubic" if family == "swin" else "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
    }
    if data["name"] == "inaturalist2018":
        data |= {"mean": (0.466, 0.471, 0.380), "std": (0.195, 0.194, 0.192)}
    elif data["name"] in CIFAR_IMAGES and family == "cifar":
        data |= {"imbalance": "exponential", "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
        if profile := _find(original, "data_loader.args.imb_type"):
            data["imbalance"] = PROFILES.get(profile, "none")
        if factor := _find(original, "data_loader.args.imb_factor"):
            data["imbalance_factor"] = float(factor)
    elif data["name"] in CIFAR_IMAGES:  # other data with as many classes
        data["name"] = "folder"
    if root := _find(original, "data_loader.args.data_dir"):
        data["root"] = str(root)
    return DataConfig(**data)


def _augmentation(data: str, family: str) -> AugmentationConfig:
    """Returns the augmentation of the experts' training, for routers and classifiers. The files do not contain it."""
    if family == "cifar":
        return AugmentationConfig()
    recipe = "imagenet-lt-swin-tiny-ride" if family == "swin" else RECIPES.get(data, "imagenet-lt-resnet50-ride")
    return load_recipe(recipe).augmentation


def _loss(original: Mapping[str, Any]) -> LossConfig:
    settings = _translate(original, LOSS)
    if settings.get("reweight_after", 0) < 0:  # -1 means never
        settings["reweight_after"] = None
    return LossConfig(name=LOSSES.get(str(_find(original, "loss.type")), "ride"), **settings)


def _training(original: Mapping[str, Any]) -> TrainingConfig:
    settings = _translate(original, TRAINING)
    steps = [_find(original, f"lr_scheduler.args.step{number}") for number in (1, 2)]
    if None not in steps:
        settings["milestones"] = [float(step) for step in steps]
    return TrainingConfig(**{"nesterov": False} | settings)  # False is PyTorch's default


def _translate(original: Mapping[str, Any], paths: Mapping[str, str]) -> dict[str, Any]:
    found = {setting: _find(original, path) for setting, path in paths.items()}
    return {setting: value for setting, value in found.items() if value is not None}


def _find(settings: Any, path: str) -> Any:
    for key in path.split("."):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings


def _metadata(data: DataConfig, architecture: Mapping[str, Any], epoch: int) -> ModelMetadata:
    """Returns the metadata. The classes of CIFAR are known; those of other data follow when the data are read."""
    num_classes, is_cifar = architecture["num_classes"], data.name in CIFAR_IMAGES
    form = {name: getattr(data, name) for name in ("image_size", "mean", "std", "interpolation")}
    counts = list[int]()
    if is_cifar:
        largest = CIFAR_IMAGES[data.name]
        counts = [largest] * num_classes
        if data.imbalance != "none":
            counts = imbalanced_counts(data.imbalance, largest, num_classes, data.imbalance_factor)
    network = {name: value for name, value in architecture.items() if name != "router"}  # the model holds the router
    return ModelMetadata(
        architecture=network | {"image_size": form["image_size"]},
        class_names=CLASS_NAMES[data.name] if is_cifar else tuple(map(str, range(num_classes))),
        class_counts=tuple(counts),
        resize=form["image_size"] if is_cifar else default_resize(form["image_size"]),
        epoch=epoch,
        **form,
    )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: must contain settings, not a {type(settings).__name__}")
    return settings
