"""Settings of RIDE: config.json, with the defaults of its Python code for what the file does not name."""

import re
from collections.abc import Mapping
from typing import Any

from longtail.interop.original.architecture import SCALE
from longtail.interop.original.translation import OriginalSection, Translation
from longtail.models.resnet_cifar import BLOCKS_PER_STAGE

# Class of the data loader -> data set and profile of its class counts
DATA_SETS = {
    "ImbalanceCIFAR100DataLoader": ("cifar100", "exponential"),
    "ImbalanceCIFAR10DataLoader": ("cifar10", "exponential"),
    "CIFAR100DataLoader": ("cifar100", "none"),
    "ImageNetLTDataLoader": ("imagenet-lt", "none"),
    "iNaturalistDataLoader": ("inaturalist2018", "none"),
}
PROFILES = {"exp": "exponential", "step": "step"}

RECIPES = {
    "inaturalist2018": "inaturalist2018-resnet50-ride",
    "places-lt": "places-lt-resnet152-ride",
}
"""Data set -> recipe with its augmentation; for other large images that of ImageNet-LT"""

WIDTHS = ("layer2_output_dim", "layer3_output_dim", "layer4_output_dim")
"""Widths of stages. A network has two of them"""


def recipe_for(data: str, backbone: str) -> str:
    """Returns the recipe with the augmentation and the router's size of the original for a data set and a network."""
    if backbone in BLOCKS_PER_STAGE:
        return "cifar10-lt-ride" if data == "cifar10" else "cifar100-lt-ride"
    return RECIPES.get(data, f"imagenet-lt-{'resnet10' if backbone == 'resnet10' else 'resnet50'}-ride")


def translate_ride(original: Mapping[str, Any]) -> Translation:
    """Returns the settings of a config.json of RIDE in the words of longtail."""
    loader, ignored = OriginalSection(original, "data_loader.args"), list[str]()
    name, profile = DATA_SETS.get(str(OriginalSection(original, "data_loader").get("type")), ("", "none"))
    data: dict[str, Any] = {"name": name} if name else {}
    if "imb_type" in loader or "imb_factor" in loader or profile != "none":
        kind = loader.get("imb_type", "exp")  # an unknown one keeps all images
        data |= {"imbalance": PROFILES.get(kind, "none"), "imbalance_factor": float(loader.get("imb_factor", 0.01))}
    if "data_dir" in loader:
        data["root"] = str(loader.get("data_dir"))
    settings: dict[str, Any] = {"data": data}
    if original.get("name"):
        settings["name"] = str(original["name"])
    match = re.fullmatch(r"(ResNet|ResNeXt)(\d+)(EA)?Model", str(OriginalSection(original, "arch").get("type")))
    if match is None:
        ignored.append("arch.type")
        model: dict[str, Any] = {}
    else:
        settings["model"] = model = _model(match, OriginalSection(original, "arch.args"), ignored)
    is_router = match is not None and match[3] is not None
    if is_router:
        settings["router"] = _router(original)
    else:
        settings["loss"], repeated = _loss(original, model, ignored)
        settings["training"] = _training(original, repeated, ignored)
        settings["router"] = {"train": False}  # it has a file of its own
        if original.get("distill"):
            settings |= _distillation(original)
    return Translation(recipe_for(name, model.get("backbone", "")), settings, ignored, is_router)


def _model(kind: re.Match[str], arguments: OriginalSection, ignored: list[str]) -> dict[str, Any]:
    family, depth, router = kind.groups()
    widths = [arguments.get(key) for key in WIDTHS if key in arguments]
    if len(widths) == 1:
        ignored.append("arch.args with the width of one stage only")
    ignored += [f"arch.args.{key}" for key in ("load_pretrained_weights", "use_experts") if arguments.get(key)]
    return {
        "backbone": f"{family.lower()}{depth}{'_32x4d' if family == 'ResNeXt' else ''}",
        "num_experts": arguments.get("num_experts", 2 if depth == "32" and router else 1),
        "width": widths if len(widths) == 2 else "narrow" if arguments.get("reduce_dimension") else "full",
        "head": "cosine" if arguments.get("use_norm") else "linear",
        "scale": float(arguments.get("s", SCALE)),
        "expert_stages": 1 if arguments.get("share_layer3") else 2,
    }


def _router(original: Mapping[str, Any]) -> dict[str, Any]:
    arguments, optimizer = OriginalSection(original, "arch.args"), OriginalSection(original, "optimizer.args")
    return {
        "top_choices": arguments.get("top_choices_num", 5),
        "shared": bool(arguments.get("share_expert_help_pred_fc", True)),
        "positive_weight": float(arguments.get("pos_weight", 20)),
        "epochs": OriginalSection(original, "trainer").get("epochs", 5),
        "batch_size": OriginalSection(original, "data_loader.args").get("batch_size", 512),
        "learning_rate": float(optimizer.get("lr", 0.01)),
        "weight_decay": float(optimizer.get("weight_decay", 0.0)),
    }


def _loss(original: Mapping[str, Any], model: Mapping[str, Any], ignored: list[str]) -> tuple[dict[str, Any], int]:
    """Returns the section loss, and how often longtail adds up what the original counts once."""
    kind, arguments = OriginalSection(original, "loss").get("type"), OriginalSection(original, "loss.args")
    experts, epochs = model.get("num_experts", 1), OriginalSection(original, "trainer").get("epochs", 1)
    after = arguments.get("reweight_epoch", -1)  # -1 means never; so does an epoch that is not reached
    ride = {"RIDELoss": 1, "RIDELossWithDistill": experts}
    loss: dict[str, Any] = {"reweight_after": after if 0 <= after < epochs else None, "label_smoothing": 0.0}
    if kind in ("LDAMLoss", *ride):
        margin = float(arguments.get("max_m", 0.5)) * float(arguments.get("s", SCALE))
        loss["max_margin"] = margin / model.get("scale", SCALE)  # longtail multiplies by the scale of the cosines
    if kind in ride and original.get("add_extra_info"):
        factor = float(arguments.get("additional_diversity_factor", -0.2))
        loss |= {
            "name": "ride",
            "diversity_factor": factor,
            "diversity_mean": False,
            "diversity_temperature": float(arguments.get("base_diversity_temperature", 1.0)),
            "temperature_spread": float(arguments.get("reweight_factor", 0.05)),
            "collaborative": factor == 0,  # then the margins' loss is that of the mean logits, once for each expert
        }
        if not arguments.get("reweight", True):
            loss["reweight_after"] = None
        ignored += [
            f"loss.args.{key}" for key in ("base_loss_factor", "ride_loss_factor") if arguments.get(key, 1.0) != 1
        ]
        arguments.get("distill_temperature"), arguments.get("additional_distill_loss_factor")
        ignored += arguments.unread()
        return loss, 1
    loss["collaborative"] = experts > 1  # the mean logits
    if kind == "LDAMLoss":
        loss["name"] = "ldam"
    elif kind == "FocalLoss":
        loss |= {"name": "focal", "focal_gamma": float(arguments.get("gamma", 0.0)), "reweight_after": None}
    else:  # also RIDE's loss if it does not get the logits of each expert
        if kind not in ("CrossEntropyLoss", *ride):
            ignored.append("loss.type")
        loss |= {"name": "cross_entropy", "reweight_after": 0 if arguments.get("reweight_CE") else None}
    if kind not in ride:
        ignored += arguments.unread()
    return loss, experts


def _training(original: Mapping[str, Any], repeated: int, ignored: list[str]) -> dict[str, Any]:
    loader, optimizer = OriginalSection(original, "data_loader.args"), OriginalSection(original, "optimizer.args")
    kind = OriginalSection(original, "optimizer").get("type", "SGD")
    epochs = OriginalSection(original, "trainer").get("epochs", 1)
    period = OriginalSection(original, "trainer").get("save_period", 0)
    # SGD with a loss that is E times as large is the same with 1/E of the rate and E times the decay. AdamW divides
    # gradients by their size anyway.
    share = repeated if kind == "SGD" else 1
    training = {
        "epochs": epochs,
        "batch_size": loader.get("batch_size", 1),
        "sampling": "class-balanced" if loader.get("balanced") else "shuffled",
        "accumulation": 1,
        "optimizer": "adamw" if kind in ("Adam", "AdamW") else "sgd",
        "learning_rate": float(optimizer.get("lr", 0.001)) / share,
        "learning_rate_batch": None,
        "momentum": float(optimizer.get("momentum", 0.0)),
        "nesterov": bool(optimizer.get("nesterov", False)),
        "weight_decay": float(optimizer.get("weight_decay", 0.01 if kind == "AdamW" else 0.0)) * share,
        "decay_vectors": True,
        "clip_gradient": None,
        "keep_every": period if period < epochs else 0,
    }
    if kind not in ("SGD", "AdamW") and not (kind == "Adam" and training["weight_decay"] == 0):
        ignored.append("optimizer.type")
    ignored += optimizer.unread()
    return training | _schedule(original, epochs, share, ignored)


def _schedule(original: Mapping[str, Any], epochs: int, share: int, ignored: list[str]) -> dict[str, Any]:
    kind = OriginalSection(original, "lr_scheduler").get("type")
    arguments = OriginalSection(original, "lr_scheduler.args")
    schedule, final, warmup, milestones = "step", 0.0, 0, list[float]()
    decay = float(arguments.get("gamma", 0.1))
    if kind == "CustomLR":
        milestones = [arguments.get("step1", epochs), arguments.get("step2", epochs)]
        warmup = arguments.get("warmup_epoch", 0)
        if warmup > epochs:
            ignored.append("lr_scheduler.args.warmup_epoch above trainer.epochs")
    elif kind == "MultiStepLR":
        milestones = list(arguments.get("milestones", []))
    elif kind == "StepLR":
        milestones = list(range(arguments.get("step_size", epochs), epochs, arguments.get("step_size", epochs)))
    elif kind == "CosineAnnealingLR":
        schedule, final = "cosine", float(arguments.get("eta_min", 0.0)) / share
        if arguments.get("T_max", epochs) != epochs:
            ignored.append("lr_scheduler.args.T_max other than trainer.epochs")
    elif kind is not None:
        ignored.append("lr_scheduler.type")
    ignored += arguments.unread() if kind is not None else []
    return {
        "schedule": schedule,
        "final_learning_rate": final,
        "milestones": [float(milestone) for milestone in milestones if milestone < epochs],
        "decay": decay,
        "warmup": min(warmup, epochs),
        "warmup_learning_rate": 0.0,
    }


def _distillation(original: Mapping[str, Any]) -> dict[str, Any]:
    arguments = OriginalSection(original, "loss.args")
    return {
        "teacher": original.get("distill_checkpoint"),
        "distillation": {
            "temperature": float(arguments.get("distill_temperature", 1.0)),
            "factor": float(arguments.get("additional_distill_loss_factor", 1.0)),
            "published": True,
        },
    }
