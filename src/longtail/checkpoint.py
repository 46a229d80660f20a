"""Models as single safetensors files that say everything needed to use them."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from longtail.data.transforms import Interpolation
from longtail.errors import InputError
from longtail.models.experts import MultiExpert, create_model

METADATA_KEY = "longtail"
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class ModelCard:
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

    threshold_for: str = ""
    """What the router's threshold was chosen for on the validation images; empty where it was given"""


def save_model(path: Path, model: MultiExpert, card: ModelCard) -> None:
    """Writes weights and card; whatever happens, ``path`` holds either the old file or the new one, whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, save(tensors, {METADATA_KEY: json.dumps(asdict(card))}))


def load_model_file(path: Path) -> tuple[MultiExpert, ModelCard]:
    """Reads what `save_model` wrote, as a model on the CPU in eval mode. Executes nothing from the file.

    Raises:
        InputError: the file is absent, damaged, or not one of ours.
    """
    card = load_card(path)
    try:
        with _opened(path) as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        model = create_model(**card.architecture)
        model.load_state_dict(tensors, strict=True)
    except (TypeError, KeyError, ValueError, RuntimeError) as error:
        raise _disagreement(path, error) from error
    return model.eval(), card


def load_card(path: Path) -> ModelCard:
    """Only the description in a model file.

    Raises:
        InputError: as `load_model_file`.
    """
    with _opened(path) as file:
        described = (file.metadata() or {}).get(METADATA_KEY)
    if described is None:
        raise InputError(f"{path}: holds weights but no description of a longtail model")
    try:
        return _read_card(described)
    except (TypeError, KeyError, ValueError) as error:
        raise _disagreement(path, error) from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from error


def _disagreement(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: weights and description do not agree ({' '.join(str(error).split())})")


def _read_card(text: str) -> ModelCard:
    fields = json.loads(text)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return ModelCard(**values)


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


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under another name, makes sure it has reached the disk, and renames it.

    Raises:
        InputError: the disk is full or the folder cannot be written to; an earlier file is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"{path} could not be written: {error.strerror}") from error
