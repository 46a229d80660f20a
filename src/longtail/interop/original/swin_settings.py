"""Settings of RIDE-Swin: its YAML files, with the defaults of its config.py for what a file does not name."""

from collections.abc import Mapping
from typing import Any

from longtail.interop.original.architecture import SCALE, swin_network
from longtail.interop.original.translation import OriginalSection, Translation

BASE = "imagenet-lt-swin-tiny-ride"
"""Recipe of the same data and augmentation"""

REFERENCE_BATCH = 512
"""Batch size of the learning rates in its files"""


def translate_swin(original: Mapping[str, Any]) -> Translation:
    """Returns the settings of RIDE-Swin in the words of longtail.

    A file that names some settings has learning rates for `REFERENCE_BATCH` images. What the original saves when it
    runs names all of them, and has the rates of that run; the number of its GPUs is not saved.
    """
    data, ignored = OriginalSection(original, "DATA"), list[str]()
    name = data.get("DATASET", "imagenet")
    settings: dict[str, Any] = {
        "data": {
            "name": "imagenet-lt" if name == "imagenet-lt" else "folder",
            "image_size": data.get("IMG_SIZE", 224),
            "interpolation": data.get("INTERPOLATION", "bicubic"),
        },
        "model": _model(original, ignored),
        "augmentation": _augmentation(original, ignored),
        "loss": _loss(original, ignored),
        "training": _training(original, ignored),
        "seed": OriginalSection(original).get("SEED", 0),
        "router": {"train": False},
    }
    ignored += ["BASE"] if any(OriginalSection(original).get("BASE", [])) else []
    if data.get("DATA_PATH"):
        settings["data"]["root"] = str(data.get("DATA_PATH"))
    if label := OriginalSection(original, "MODEL").get("NAME"):
        settings["name"] = str(label)
    return Translation(BASE, settings, ignored)


def _model(original: Mapping[str, Any], ignored: list[str]) -> dict[str, Any]:
    model, swin = OriginalSection(original, "MODEL"), OriginalSection(original, "MODEL.SWIN")
    channels, depths = swin.get("EMBED_DIM", 96), tuple(swin.get("DEPTHS", (2, 2, 6, 2)))
    network, experts = swin_network(channels, depths, swin.get("WINDOW_SIZE", 7)), model.get("NUM_EXPERTS", 1)
    if network is None or model.get("TYPE", "swin") != "swin":
        ignored.append("MODEL.SWIN.EMBED_DIM and DEPTHS" if network is None else "MODEL.TYPE")
    heads = [channels * 2**stage // 32 for stage in range(len(depths))]
    fixed = {"APE": False, "PATCH_SIZE": 4, "MLP_RATIO": 4, "QKV_BIAS": True, "QK_SCALE": None, "PATCH_NORM": True}
    ignored += [
        f"MODEL.SWIN.{key}" for key, value in (fixed | {"NUM_HEADS": heads}).items() if swin.get(key, value) != value
    ]
    name, options = network or ("", {})
    cosine, loss = model.get("USE_NORMED_LINEAR", False), OriginalSection(original, "TRAIN")
    scale = OriginalSection(original, "TRAIN.LOSS").get("S", SCALE) if loss.get("LOSS_TYPE") == "RIDE" else SCALE
    return {
        "backbone": name,
        **options,
        "num_experts": experts,
        "width": "narrow" if experts > 1 and not model.get("FORCE_ORIGINAL_FEATURE_DIM") else "full",
        "head": "cosine" if cosine else "linear",
        # Its losses multiply by the scale, but not its cross-entropy.
        "scale": 1.0 if cosine and loss.get("LOSS_TYPE", "CE") == "CE" else float(scale),
        "expert_stages": 4 - model.get("BRANCHING_START", 2),
        "drop_rate": float(model.get("DROP_RATE", 0.0)),
        "drop_path_rate": float(model.get("DROP_PATH_RATE", 0.1)),
    }


def _augmentation(original: Mapping[str, Any], ignored: list[str]) -> dict[str, Any]:
    settings = OriginalSection(original, "AUG")
    data, sides = OriginalSection(original, "DATA"), settings.get("CUTMIX_MINMAX")
    policy, jitter = settings.get("AUTO_AUGMENT", "rand-m9-mstd0.5-inc1"), settings.get("COLOR_JITTER", 0.4)
    augmentation: dict[str, Any] = {
        "rand_augment": None if policy == "none" else policy,
        # timm has no color jitter beside RandAugment.
        "color_jitter": [0.0] * 4 if policy != "none" else [jitter, jitter, jitter, 0.0],
        "random_erasing": float(settings.get("REPROB", 0.25)),
        "mixup": float(settings.get("MIXUP", 0.8)),
        "cutmix": 1.0 if sides else float(settings.get("CUTMIX", 1.0)),
        "mix_images": data.get("BATCH_SIZE", 128),  # of one GPU and one accumulated part
        "mix_probability": float(settings.get("MIXUP_PROB", 1.0)),
        "cutmix_probability": float(settings.get("MIXUP_SWITCH_PROB", 0.5)),
        "cutmix_range": list(sides) if sides else None,
    }
    defaults = {"MIXUP_MODE": "batch", "REMODE": "pixel", "RECOUNT": 1}
    ignored += [f"AUG.{key}" for key, default in defaults.items() if settings.get(key, default) != default]
    return augmentation


def _loss(original: Mapping[str, Any], ignored: list[str]) -> dict[str, Any]:
    train, details = OriginalSection(original, "TRAIN"), OriginalSection(original, "TRAIN.LOSS")
    model, kind = OriginalSection(original, "MODEL"), train.get("LOSS_TYPE", "CE")
    after, epochs = train.get("REWEIGHT_EPOCH", 240), train.get("EPOCHS", 300)
    loss: dict[str, Any] = {
        "label_smoothing": float(model.get("LABEL_SMOOTHING", 0.1)),
        "collaborative": model.get("NUM_EXPERTS", 1) > 1,  # the mean logits
        "reweight_after": None,
    }
    if kind == "RIDE":
        factor = float(details.get("ADDITIONAL_DIV_FACTOR", -0.2))
        loss |= {
            "name": "ride",
            "max_margin": float(details.get("MAX_M", 0.5)),
            "diversity_factor": factor,
            "diversity_mean": True,
            "diversity_temperature": float(details.get("BASE_DIV_TEMP", 1.0)),
            "temperature_spread": float(details.get("REWEIGHT_FACTOR", 0.05)),
            "collaborative": factor == 0,
        }
        if details.get("BASE_LOSS_FACTOR", 1.0) != 1:
            ignored.append("TRAIN.LOSS.BASE_LOSS_FACTOR")
        after = after + 1 if details.get("REWEIGHT", True) and after >= 0 else epochs  # it counts epochs from 0
    elif kind == "LDAM":
        loss |= {"name": "ldam", "max_margin": 0.5}  # counted from 0 too, but it starts with the epoch itself
    else:
        loss["name"], after = "cross_entropy", epochs
        if kind != "CE":
            ignored.append("TRAIN.LOSS_TYPE")
    return loss | {"reweight_after": after if after < epochs else None}


def _training(original: Mapping[str, Any], ignored: list[str]) -> dict[str, Any]:
    train, optimizer = OriginalSection(original, "TRAIN"), OriginalSection(original, "TRAIN.OPTIMIZER")
    scheduler, data = OriginalSection(original, "TRAIN.LR_SCHEDULER"), OriginalSection(original, "DATA")
    parts, epochs = max(1, train.get("ACCUMULATION_STEPS", 0)), train.get("EPOCHS", 300)
    kind, schedule = optimizer.get("NAME", "adamw").lower(), scheduler.get("NAME", "cosine")
    ignored += ["TRAIN.OPTIMIZER.NAME"] if kind not in ("adamw", "sgd") else []
    ignored += ["TRAIN.LR_SCHEDULER.NAME"] if schedule != "cosine" else []
    is_saved = "LOCAL_RANK" in OriginalSection(original)
    level = OriginalSection(original).get("AMP_OPT_LEVEL") or "O0"
    return {
        "epochs": epochs,
        "batch_size": data.get("BATCH_SIZE", 128) * parts,
        "sampling": "shuffled",
        "accumulation": parts,
        "precision": "float32" if level == "O0" else "fp16",
        "checkpoint_activations": bool(train.get("USE_CHECKPOINT", False)),
        "optimizer": kind if kind in ("adamw", "sgd") else "adamw",
        "momentum": float(optimizer.get("MOMENTUM", 0.9)),
        "nesterov": True,
        "learning_rate": float(train.get("BASE_LR", 5e-4)),
        "warmup_learning_rate": float(train.get("WARMUP_LR", 5e-7)),
        "final_learning_rate": float(train.get("MIN_LR", 5e-6)),
        "learning_rate_batch": None if is_saved else REFERENCE_BATCH,
        "schedule": "cosine",
        "warmup": min(train.get("WARMUP_EPOCHS", 20), epochs),
        "weight_decay": float(train.get("WEIGHT_DECAY", 0.05)),
        "decay_vectors": False,
        "clip_gradient": train.get("CLIP_GRAD", 5.0) or None,
    }
