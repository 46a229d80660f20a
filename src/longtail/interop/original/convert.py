"""Converts a checkpoint file of the original code to a run folder."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from longtail.config.recipes import checked_types, load_recipe
from longtail.config.schema import (
    Config,
    DataConfig,
    DistillationConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    RouterConfig,
    TrainingConfig,
)
from longtail.data.imbalance import imbalanced_counts
from longtail.data.sources.cifar import CLASS_NAMES
from longtail.data.transforms import default_resize
from longtail.interop.original.architecture import SCALE, load_original
from longtail.interop.original.checkpoint import read_original
from longtail.interop.original.ride_settings import recipe_for
from longtail.interop.original.settings import read_settings, translate
from longtail.interop.original.swin_settings import BASE
from longtail.interop.original.translation import OriginalSection, Translation
from longtail.models.resnet_cifar import BLOCKS_PER_STAGE
from longtail.runs.model_file import ModelMetadata
from longtail.runs.run import Run, new_run
from longtail.runtime.device import environment
from longtail.utils.errors import InputError

logger = logging.getLogger(__name__)

DATA_SETS = {10: "cifar10", 100: "cifar100", 365: "places-lt", 1000: "imagenet-lt", 8142: "inaturalist2018"}
"""Number of classes -> data set of the originals"""

CIFAR_IMAGES = {"cifar10": 5000, "cifar100": 500}
"""Training images of each class in the full data set"""


def convert(file: str | Path, output: str | Path) -> Run:
    """Makes a run folder from a checkpoint of the original RIDE or RIDE-Swin.

    The network follows from the names and shapes of the weights, the data set from the number of classes, the settings
    from ``config.json`` in the same folder or else from the checkpoint. What the settings do not name has the value of
    the original's code.

    Raises:
        InputError: the file cannot be read or is not such a checkpoint, or ``output`` exists already.
    """
    file = Path(file)
    run = Run(output)
    is_continued = not run.config_path.exists() and run.environment().get("converted_from") == str(file)
    run = run if is_continued else new_run(file.stem, output)  # it was killed
    checkpoint = read_original(file)
    path = file.with_name("config.json")
    original, source = (read_settings(path), path) if path.is_file() else (checkpoint.config, file)
    try:
        translated = translate(original) if original else None
        options = {} if translated is None else translated.settings.get("model", {})
        model, architecture = load_original(checkpoint.state_dict, options.get("scale", SCALE))
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {error}") from error
    num_classes = OriginalSection(original, "arch.args").get("num_classes", architecture["num_classes"])
    if num_classes != architecture["num_classes"]:
        raise InputError(f"{source} has {num_classes} classes, the weights have {architecture['num_classes']}")
    try:
        config = checked_types(_config(file.stem, translated, architecture))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{source}: {error}") from error
    # The network follows from the weights, whatever the settings say.
    ignored = [name for name in translated.ignored if not name.startswith(("arch.", "MODEL."))] if translated else []
    if ignored:
        logger.warning("%s: ignored, because longtail has nothing like it: %s", source, ", ".join(ignored))
    origin = {"converted_from": str(file), "converted_class": checkpoint.arch}
    with run.lock():
        metadata = _metadata(config.data, architecture, checkpoint.epoch)
        run.start(config, environment(torch.device("cpu"), 1) | origin, (model, metadata))
    return run


def _config(name: str, translated: Translation | None, architecture: Mapping[str, Any]) -> Config:
    """Returns the settings of a run: those of the original, and of the network."""
    backbone = architecture["name"]
    family = "cifar" if backbone in BLOCKS_PER_STAGE else "swin" if backbone.startswith("swin") else "resnet"
    found = translated.settings if translated is not None else {}
    data = _data(found.get("data", {}), architecture, family)
    # The augmentation of RIDE is in its code, and the training of the experts in another file than that of the router.
    recipe = load_recipe(BASE if family == "swin" else recipe_for(data["name"], backbone))
    options: dict[str, Any] = {
        key: architecture.get(key)
        for key in ("num_experts", "width", "head", "scale", "expert_stages", "depths", "window_size")
    }
    rates = {key: found.get("model", {}).get(key, 0.0) for key in ("drop_rate", "drop_path_rate")}
    router = {"top_choices": recipe.router.top_choices, **architecture.get("router", {})} | found.get("router", {})
    return Config(
        name=str(found.get("name", name)),
        seed=found.get("seed", 0),
        teacher=found.get("teacher"),
        data=DataConfig(**data),
        augmentation=replace(recipe.augmentation, **found.get("augmentation", {})),
        model=ModelConfig(backbone=backbone, **options, **rates),
        loss=LossConfig(**found["loss"]) if "loss" in found else _likely_loss(recipe.loss, architecture),
        training=TrainingConfig(**found["training"]) if "training" in found else recipe.training,
        distillation=DistillationConfig(**found.get("distillation", {})),
        router=RouterConfig(**router),
        # RIDE-Swin has other shot limits than RIDE.
        evaluation=EvaluationConfig(many_above=99, few_below=21) if family == "swin" else EvaluationConfig(),
    )


def _likely_loss(published: LossConfig, architecture: Mapping[str, Any]) -> LossConfig:
    """Returns the loss that the originals have used for a network, if no settings are at hand."""
    if architecture["num_experts"] > 1:
        return published
    if architecture["head"] == "cosine":
        return replace(published, name="ldam")
    return replace(published, name="cross_entropy", reweight_after=None)


def _data(found: Mapping[str, Any], architecture: Mapping[str, Any], family: str) -> dict[str, Any]:
    # All fields are set, because timm's networks of the same name can have other values.
    sizes = {"cifar": 32, "resnet": 224}
    data: dict[str, Any] = {
        "name": DATA_SETS.get(architecture["num_classes"], "folder"),
        "image_size": architecture.get("image_size")
        or sizes.get(family)
        or int(architecture["name"].rsplit("_", 1)[1]),
        "interpolation": "bicubic" if family == "swin" else "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
    }
    if data["name"] == "inaturalist2018":
        data |= {"mean": (0.466, 0.471, 0.380), "std": (0.195, 0.194, 0.192)}
    elif data["name"] in CIFAR_IMAGES and family == "cifar":
        data |= {"imbalance": "exponential", "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
    elif data["name"] in CIFAR_IMAGES:  # other data with as many classes
        data["name"] = "folder"
    kept = ("root", "interpolation", *(("imbalance", "imbalance_factor") if data["name"] in CIFAR_IMAGES else ()))
    return data | {name: value for name, value in found.items() if name in kept}


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
