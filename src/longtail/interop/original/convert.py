"""An original checkpoint file -> a run folder."""

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

DATA: dict[int, dict[str, Any]] = {
    10: {"name": "cifar10"},
    100: {"name": "cifar100"},
    365: {"name": "places-lt"},
    1000: {"name": "imagenet-lt"},
    8142: {"name": "inaturalist2018", "mean": (0.466, 0.471, 0.380), "std": (0.195, 0.194, 0.192)},
}
"""By the number of its classes, what each data set of the originals is called here."""

RECIPES = {
    "imagenet-lt": "imagenet-lt-resnet50-ride",
    "inaturalist2018": "inaturalist2018-resnet50-ride",
    "places-lt": "places-lt-resnet152-ride",
}
"""The ResNets' recipes for large images."""

CIFAR = {"imbalance": "exponential", "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
CIFAR_IMAGES = {"cifar10": 5000, "cifar100": 500}
"""Training images of a class before most are left out."""

PROFILES = {"exp": "exponential", "step": "step"}
LOSSES = {"RIDELoss": "ride", "LDAMLoss": "ldam", "CrossEntropyLoss": "cross_entropy"}

# Our setting -> where it stands in their config.json.
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
    """Makes a run folder of a checkpoint that the original RIDE or RIDE-Swin saved.

    The network is read off the weights' names and shapes; the data set off the number of classes; settings come from
    the ``config.json`` beside the file, or else from those inside it.

    Raises:
        InputError: the file cannot be read or is not an original checkpoint, or ``output`` holds something already.
    """
    file = Path(file)
    run = new_run(file.stem, output)
    official = read_original(file)
    try:
        model, architecture = load_original(official.state_dict)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    beside = file.with_name("config.json")
    theirs = _read_settings(beside) if beside.is_file() else official.config
    if theirs and (given := _find(theirs, "arch.args.num_classes")) not in (None, architecture["num_classes"]):
        raise InputError(f"{beside} is about {given} classes and {file} has {architecture['num_classes']}")
    try:
        config = checked_types(_config(file.stem, theirs, architecture))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{beside}: {error}") from error
    source = {"converted_from": str(file), "converted_class": official.arch}
    with run.lock():
        run.start(config, environment(torch.device("cpu"), 1) | source)
        run.save_model(model, _metadata(config, architecture, official.epoch))
    return run


def _config(name: str, theirs: Mapping[str, Any], architecture: Mapping[str, Any]) -> Config:
    arch = {key: architecture[key] for key in ("num_experts", "width", "head", "scale")}
    arch["expert_stages"] = architecture.get("expert_stages")
    data = dict(DATA.get(architecture["num_classes"], {"name": "folder"}))
    small = architecture["name"] in BLOCKS_PER_STAGE
    if data["name"] in CIFAR_IMAGES:
        data = data | CIFAR if small else {"name": "folder"}
        if profile := _find(theirs, "data_loader.args.imb_type"):
            data["imbalance"] = PROFILES.get(profile, "none")
        if factor := _find(theirs, "data_loader.args.imb_factor"):
            data["imbalance_factor"] = float(factor)
    if root := _find(theirs, "data_loader.args.data_dir"):
        data["root"] = str(root)
    swin = architecture["name"].startswith("swin")
    # Not what timm's networks of these names were published with.
    usual = {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD}
    usual |= {"interpolation": "bicubic" if swin else "bilinear", "image_size": 32 if small else 224}
    if swin:
        usual["image_size"] = int(architecture["name"].rsplit("_", 1)[1])
    data = usual | data
    # The two repositories draw the lines between many, medium and few shots differently.
    evaluation = EvaluationConfig(many_above=99, few_below=21) if swin else EvaluationConfig()
    loss, training = LossConfig(), TrainingConfig()
    if theirs and "router" not in architecture:  # those of a routed model are about training its router
        loss, training = _loss(theirs), _training(theirs)
    return Config(
        name=str(theirs.get("name", name)),
        data=DataConfig(**data),
        augmentation=_augmentation(data["name"], small, swin),
        model=ModelConfig(backbone=architecture["name"], **arch),
        loss=loss,
        training=training,
        evaluation=evaluation,
    )


def _augmentation(data: str, small: bool, swin: bool) -> AugmentationConfig:
    """What the experts were trained with, for the routers and classifiers that follow; their files do not say it."""
    if small:
        return AugmentationConfig()
    if swin:
        return load_recipe("imagenet-lt-swin-tiny-ride").augmentation
    return load_recipe(RECIPES.get(data, RECIPES["imagenet-lt"])).augmentation


def _loss(theirs: Mapping[str, Any]) -> LossConfig:
    settings = _translate(theirs, LOSS)
    if settings.get("reweight_after", 0) < 0:  # -1 is their word for never
        settings["reweight_after"] = None
    return LossConfig(name=LOSSES.get(str(_find(theirs, "loss.type")), "ride"), **settings)  # type: ignore[arg-type]


def _training(theirs: Mapping[str, Any]) -> TrainingConfig:
    settings = _translate(theirs, TRAINING)
    steps = [_find(theirs, f"lr_scheduler.args.step{number}") for number in (1, 2)]
    if all(step is not None for step in steps):
        settings["milestones"] = [float(step) for step in steps if step is not None]
    # Where theirs says nothing of Nesterov's momentum, PyTorch's default held.
    return TrainingConfig(**{"nesterov": False} | settings)


def _translate(theirs: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    found = {ours: _find(theirs, path) for ours, path in names.items()}
    return {ours: value for ours, value in found.items() if value is not None}


def _find(settings: Any, path: str) -> Any:
    for key in path.split("."):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    return settings


def _metadata(config: Config, architecture: Mapping[str, Any], epoch: int) -> ModelMetadata:
    """What is known of the classes: of CIFAR all; of other data sets nothing until their lists are read."""
    data, num_classes = config.data, architecture["num_classes"]
    names, counts = [str(label) for label in range(num_classes)], list[int]()
    size = data.image_size or 224
    resize = default_resize(size)
    if data.name in CIFAR_IMAGES:
        names, size, resize = list(CLASS_NAMES[data.name]), 32, 32
        largest = CIFAR_IMAGES[data.name]
        counts = [largest] * num_classes
        if data.imbalance != "none":
            counts = imbalanced_counts(data.imbalance, largest, num_classes, data.imbalance_factor)
    return ModelMetadata(
        architecture={**architecture, "expert_stages": config.model.expert_stages, "image_size": size},
        class_names=tuple(names),
        class_counts=tuple(counts),
        image_size=size,
        resize=resize,
        mean=data.mean or IMAGENET_DEFAULT_MEAN,
        std=data.std or IMAGENET_DEFAULT_STD,
        interpolation=data.interpolation or "bilinear",
        epoch=epoch,
    )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable JSON file ({error})") from error
    if not isinstance(settings, dict):
        raise InputError(f"{path}: must hold settings, not a {type(settings).__name__}")
    return settings
