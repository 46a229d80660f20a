"""Models as single files that say everything needed to use them."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch

from longtail.data.sources.files import is_printable
from longtail.data.transforms import Interpolation
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.utils.ensembles import Average
from longtail.utils.errors import InputError
from longtail.utils.files import read_description, read_tensors, write_tensors

MODEL_FILE = "model.safetensors"
MAX_SIDE = 4096
"""Pixels, as in the settings"""


@dataclass(frozen=True)
class ModelMetadata:
    """What a file of weights cannot say by itself."""

    architecture: Mapping[str, Any]
    """Arguments of `longtail.create_model`."""

    class_names: tuple[str, ...]
    """C names, in the order of the logits"""

    class_counts: tuple[int, ...]
    """Training images of each class, C numbers; empty where a converted file does not say"""

    image_size: int
    """Height and width that images are brought to, pixels"""

    resize: int
    """Shorter side before the central crop to ``image_size``, pixels"""

    mean: tuple[float, ...]
    """Subtracted from the channels (0 to 1)"""

    std: tuple[float, ...]
    """Divides them"""

    interpolation: Interpolation = "bilinear"
    """How pictures are resized"""

    training_images: str = ""
    """`longtail.data.splits.Split.fingerprint` of what it was trained on; empty where that is not known"""

    epoch: int = 0
    """Epochs trained"""

    classifier: str = ""
    """Method by which the heads were made after the experts' training; empty where they are the experts' own"""

    threshold_for: str = ""
    """What the router's threshold was chosen for on the validation images; empty where it was given"""


def set_average(model: MultiExpert, metadata: ModelMetadata, average: Average) -> ModelMetadata:
    """Lets a model average what it is told to; returns the description that says so.

    A threshold that was chosen for other answers is kept, but not called chosen any more.
    """
    if model.average == average:
        return metadata
    model.average = average
    architecture = {name: value for name, value in metadata.architecture.items() if name != "average"}
    if average != "logits":  # files of earlier versions do not speak of it
        architecture["average"] = average
    return replace(metadata, architecture=architecture, threshold_for="")


def save_model(path: Path, model: MultiExpert, metadata: ModelMetadata) -> None:
    """Writes weights and metadata; whatever happens, ``path`` holds either the old file or the new one, whole.

    Raises:
        InputError: the disk is full or the folder cannot be written to.
    """
    write_tensors(path, model.state_dict(), asdict(metadata))


def load_model_file(path: Path) -> tuple[MultiExpert, ModelMetadata]:
    """Reads what `save_model` wrote, as a model on the CPU in eval mode. Executes nothing from the file.

    Raises:
        InputError: the file is absent, damaged, or not one of ours.
    """
    metadata = load_metadata(path)
    tensors, _ = read_tensors(path)
    try:
        _check_weights(metadata, tensors)
        with torch.random.fork_rng(devices=[]):  # what is drawn is not kept, and the caller's numbers stay theirs
            model = create_model(**metadata.architecture)
        model.load_state_dict(tensors, strict=True)
    except Exception as error:  # a damaged description can raise anything
        raise _disagreement(path, error) from error
    return model.eval(), metadata


def load_metadata(path: Path) -> ModelMetadata:
    """Only the description in a model file.

    Raises:
        InputError: as `load_model_file`.
    """
    described = read_description(path)
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in described.items()}
    try:
        metadata = ModelMetadata(**fields)
        _check_metadata(metadata)
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise _disagreement(path, error) from error
    return metadata


def _disagreement(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: weights and description do not agree ({' '.join(str(error).split())})")


def _check_metadata(metadata: ModelMetadata) -> None:
    """Finds what could not be used later; what `create_model` finds itself is left to it."""
    arch, names, counts = metadata.architecture, metadata.class_names, metadata.class_counts
    colours = [
        value for given in (metadata.mean, metadata.std) for value in (given if isinstance(given, tuple) else ())
    ]
    right = {
        "architecture": isinstance(arch, dict) and isinstance(arch.get("name"), str) and not arch.get("pretrained"),
        "class_names": isinstance(names, tuple) and all(isinstance(name, str) for name in names),
        "class_counts": isinstance(counts, tuple) and all(_is_whole(n, 1) for n in counts),
        "image_size": _is_whole(metadata.image_size, 1) and metadata.image_size <= MAX_SIDE,
        "resize": _is_whole(metadata.resize, 1) and metadata.resize <= 2 * MAX_SIDE,
        "mean": len(colours) == 6 and all(isinstance(v, int | float) and math.isfinite(v) for v in colours),
        "interpolation": metadata.interpolation in get_args(Interpolation),
        "training_images": isinstance(metadata.training_images, str),
        "epoch": _is_whole(metadata.epoch, 0),
        "classifier": isinstance(metadata.classifier, str),
        "threshold_for": isinstance(metadata.threshold_for, str),
    }
    for name, is_right in right.items():
        if not is_right:
            raise ValueError(f"{name} is {str(getattr(metadata, name))[:80]}")
    if metadata.resize < metadata.image_size:
        raise ValueError(f"image_size is {metadata.image_size} and resize {metadata.resize}")
    if min(metadata.std) <= 0 or len(metadata.mean) != 3:
        raise ValueError(f"mean is {metadata.mean} and std {metadata.std}")
    if len(names) != arch.get("num_classes") or len(counts) not in (0, len(names)) or len(set(names)) < len(names):
        raise ValueError(
            f"there are {arch.get('num_classes')} classes, {len(set(names))} names of classes and {len(counts)} counts"
        )
    if not all(is_printable(name) for name in names):
        raise ValueError("names of classes hold control characters")
    if not isinstance(scale := arch.get("scale", 1), int | float) or not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}")


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _check_weights(metadata: ModelMetadata, tensors: Mapping[str, Any]) -> None:
    """Before a network of any size that a description likes to name is built."""
    heads = [name for name in tensors if name.startswith("heads.") and name.endswith(".weight")]
    arch = metadata.architecture
    experts, width, size = arch.get("num_experts", 3), arch.get("width"), arch.get("image_size")
    if len(heads) != experts or any(len(tensors[name]) != len(metadata.class_names) for name in heads):
        found = ", ".join(str(list(tensors[name].shape)) for name in heads[:5])
        raise ValueError(
            f"{experts} experts and {len(metadata.class_names)} classes, but heads of {found or 'no weights'}"
        )
    sides = {side for tensor in tensors.values() for side in tensor.shape}
    if isinstance(width, list) and not sides.issuperset(width):
        raise ValueError(f"width is {width}, and no weights are as wide")
    if size not in (None, metadata.image_size):
        raise ValueError(f"image_size is {metadata.image_size}, and {size} for the network")


def load_model(where: str | Path) -> MultiExpert:
    """The model of a run folder, or of a model file, on the CPU in eval mode.

    Raises:
        InputError: there is none, or it is damaged.
    """
    return load_model_file(model_file(where))[0]


def model_file(where: str | Path) -> Path:
    """The model file of a run folder, or the file itself."""
    path = Path(where)
    return path / MODEL_FILE if path.is_dir() else path
