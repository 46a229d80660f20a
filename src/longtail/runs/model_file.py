"""Model files: weights with the metadata needed to use them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from longtail.data.sources.image_files import is_printable
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.runs.hub import download, is_hub_address, parse_address
from longtail.utils.choices import Interpolation
from longtail.utils.errors import InputError
from longtail.utils.files import read_metadata, read_tensors, write_tensors

MODEL_FILE = "model.safetensors"
ORIGINAL_SUFFIXES = (".pth", ".pt", ".tar")
"""Of checkpoints of RIDE and RIDE-Swin"""

MAX_SIDE = 4096
"""Pixels, as in the settings"""


@dataclass(frozen=True)
class ModelMetadata:
    """What a model's weights do not say.

    The average over experts, the temperature and the router's options are not part of it: they are in the model, and
    `save_model` writes them into the file from there.
    """

    architecture: Mapping[str, Any]
    """Arguments of `longtail.create_model`"""

    class_names: tuple[str, ...]
    """C names, in the order of the logits"""

    class_counts: tuple[int, ...]
    """Training images of each class, C numbers; empty if a converted checkpoint does not say"""

    image_size: int
    """Height and width of the network's input, pixels"""

    resize: int
    """Shorter side before the central crop to ``image_size``, pixels"""

    mean: tuple[float, ...]
    """Subtracted from the channels (0 to 1)"""

    std: tuple[float, ...]
    """Divides them"""

    interpolation: Interpolation = "bilinear"
    """How images are resized"""

    training_images: str = ""
    """`longtail.data.splits.ImageSplit.fingerprint` of the training images; empty if unknown"""

    epoch: int = 0
    """Epochs trained"""

    classifier: str = ""
    """Method by which the heads were made after the experts' training; empty if they are the experts' own"""

    threshold_for: str = ""
    """Goal for which the router's threshold was chosen on validation images; empty if it was set"""


def save_model(
    path: str | Path, model: MultiExpert, metadata: ModelMetadata, before: Callable[[], None] = lambda: None
) -> None:
    """Writes weights and metadata. The file is replaced as a whole: a crash leaves the old one or the new one.

    Args:
        path: of the file.
        model: on any device.
        metadata: of the model.
        before: called when the new file is complete on the disk, before it replaces an earlier one.

    Raises:
        InputError: the disk is full or the folder is not writable; or a weight is NaN or infinite.
    """
    _check_finite(Path(path), model.state_dict(), "use a lower learning rate or a longer warm-up")
    architecture = dict(metadata.architecture)
    if model.average != "logits":
        architecture["average"] = model.average
    if model.temperature != 1:
        architecture["temperature"] = model.temperature
    if model.router is not None:
        architecture["router"] = model.router.options
    write_tensors(Path(path), model.state_dict(), asdict(replace(metadata, architecture=architecture)), before=before)


def load_model_file(path: Path) -> tuple[MultiExpert, ModelMetadata]:
    """Reads a file of `save_model`: a model on the CPU in eval mode, and its metadata. Executes nothing from the file.

    Raises:
        InputError: the file is missing, damaged, or not a model file of longtail.
    """
    metadata = load_metadata(path)
    tensors, _ = read_tensors(path)
    _check_finite(path, tensors, "train the model again")
    try:
        experts = metadata.architecture.get("num_experts", 3)
        heads = sum(name.startswith("heads.") and name.endswith(".weight") for name in tensors)
        if experts != heads:
            raise ValueError(f"num_experts is {experts}, and there are weights of {heads} heads")
        with torch.device("meta"):  # finds wrong sizes before memory is allocated for them
            shapes = {name: tensor.to("meta") for name, tensor in tensors.items()}
            create_model(**metadata.architecture).load_state_dict(shapes, strict=True)
        with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
            model = create_model(**metadata.architecture)
        model.load_state_dict(tensors, strict=True)
    except Exception as error:  # damaged metadata can raise anything
        raise _mismatch(path, error) from error
    in_model = ("average", "temperature", "router")
    architecture = {name: value for name, value in metadata.architecture.items() if name not in in_model}
    return model.eval(), replace(metadata, architecture=architecture)


def load_metadata(path: Path) -> ModelMetadata:
    """Reads the metadata alone; here its architecture includes average, temperature and router, as in the file.

    Raises:
        InputError: as `load_model_file`.
    """
    reject_original(path)
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in read_metadata(path).items()
    }
    try:
        metadata = ModelMetadata(**fields)
        _check_metadata(metadata)
    except (TypeError, KeyError, ValueError, RecursionError) as error:
        raise _mismatch(path, error) from error
    return metadata


def load_model(source: str | Path) -> MultiExpert:
    """Loads the model of a run folder, of a model file or of ``hf://owner/name``, on the CPU in eval mode.

    Raises:
        InputError: there is no model, or it is damaged.
    """
    return load_model_file(model_path(source))[0]


def model_path(source: str | Path) -> Path:
    """The model file of a run folder, the file itself, or the downloaded file of ``hf://owner/name``.

    Raises:
        InputError: there is no such run or file; an address on the Hub is wrong, or the download fails.
    """
    if is_hub_address(source):
        return download(parse_address(str(source)), MODEL_FILE)
    path = Path(source)
    if not path.exists():
        raise InputError(f"'{source}' is not a run folder or a model file: it does not exist")
    if path.is_dir() and not (path / MODEL_FILE).exists():
        raise InputError(f"'{source}' is not a run folder: it has no {MODEL_FILE}")
    return path / MODEL_FILE if path.is_dir() else path


def _check_finite(path: Path, tensors: Mapping[str, Tensor], advice: str) -> None:
    """The loss alone does not show what the last update does."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(f"{path}: '{name}' holds NaN or infinite numbers, so training diverged; {advice}")


def reject_original(source: str | Path) -> None:
    """Raises `InputError` if a file has the suffix of a checkpoint of the original code."""
    path = Path(source)
    if path.suffix in ORIGINAL_SUFFIXES and path.is_file():
        raise InputError(
            f"{path}: is not a run or a model file. A checkpoint of RIDE or RIDE-Swin becomes a run with: "
            f"longtail convert {path} RUN"
        )


def _mismatch(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: the weights do not match the metadata ({' '.join(str(error).split())[:300]})")


def _check_metadata(metadata: ModelMetadata) -> None:
    """Finds what would fail only when the model is used; `create_model` checks the architecture."""
    arch, names, counts = metadata.architecture, metadata.class_names, metadata.class_counts
    sizes = metadata.image_size, metadata.resize
    valid = {
        "architecture": isinstance(arch, dict) and isinstance(arch.get("name"), str) and not arch.get("pretrained"),
        "class_names": _are(str, names) and all(map(is_printable, names)) and len(set(names)) == len(names),
        "class_counts": _are(int, counts) and all(count >= 1 for count in counts),
        "image_size": _are(int, sizes) and 1 <= metadata.image_size <= min(metadata.resize, MAX_SIDE),
        "resize": _are(int, sizes) and metadata.resize <= 2 * MAX_SIDE,
        "mean": _are_channels(metadata.mean),
        "std": _are_channels(metadata.std) and min(metadata.std) > 0,
        "interpolation": metadata.interpolation in get_args(Interpolation),
        "epoch": _are(int, (metadata.epoch,)) and metadata.epoch >= 0,
    } | {name: isinstance(getattr(metadata, name), str) for name in ("training_images", "classifier", "threshold_for")}
    for name, is_valid in valid.items():
        if not is_valid:
            raise ValueError(f"{name} is {str(getattr(metadata, name))[:80]}")
    if len(names) != arch.get("num_classes") or len(counts) not in (0, len(names)):
        raise ValueError(f"{arch.get('num_classes')} classes, {len(names)} class names and {len(counts)} class counts")
    if not isinstance(scale := arch.get("scale", 1), int | float) or not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}")
    if arch.get("image_size", metadata.image_size) not in (None, metadata.image_size):
        raise ValueError(f"image_size is {metadata.image_size}, and {arch['image_size']} for the network")


def _are(kind: type, values: Any) -> bool:
    return isinstance(values, tuple) and all(type(value) is kind for value in values)


def _are_channels(values: Any) -> bool:
    """Whether they are three finite numbers."""
    return (
        isinstance(values, tuple)
        and len(values) == 3
        and all(isinstance(value, int | float) and math.isfinite(value) for value in values)
    )
