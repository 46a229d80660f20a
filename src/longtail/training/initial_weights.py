"""Initial weights of trunk, branches and heads from another model: fine-tuning of a run or a checkpoint."""

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtail.interop.original.architecture import load_original
from longtail.interop.original.checkpoint import read_original
from longtail.models.multi_expert import MultiExpert
from longtail.runs.hub import is_hub_address
from longtail.runs.model_file import MODEL_FILE, ORIGINAL_SUFFIXES, ModelMetadata, load_model_file, model_path
from longtail.utils.errors import InputError
from longtail.utils.files import METADATA_KEY
from longtail.utils.format import pluralize, shortened_list

PART = re.compile(r"^(trunk|neck|(branches|heads)\.\d+)\.")
"""Start of a tensor's name"""

logger = logging.getLogger(__name__)


class InitialModel(NamedTuple):
    """A trained model that another one starts from."""

    model: MultiExpert

    metadata: ModelMetadata | None
    """None for a checkpoint of the original code"""


def load_initial(source: str) -> InitialModel | None:
    """Reads the model that ``model.pretrained`` names; None if it is not one but a file of a network's weights.

    Raises:
        InputError: it is a folder without a model, or a damaged model.
    """
    path = model_path(source) if is_hub_address(source) else Path(source)
    if path.is_dir():
        if not (path / MODEL_FILE).is_file():
            raise InputError(f"model.pretrained is '{source}', which is not a run folder: it has no {MODEL_FILE}")
        return InitialModel(*load_model_file(path / MODEL_FILE))
    if path.suffix == ".safetensors" and _is_ours(path):
        return InitialModel(*load_model_file(path))
    if path.suffix in ORIGINAL_SUFFIXES and path.is_file():
        try:
            return InitialModel(load_original(read_original(path).state_dict)[0], None)
        except InputError:  # a file of timm or torchvision may have the same suffix
            return None
    return None


def start_from(model: MultiExpert, initial: InitialModel, source: str, class_names: Sequence[str]) -> None:
    """Copies weights, in place.

    The trunk must fit. A branch is copied if all of it fits, and a head if it is for the same classes. If the other
    model has fewer experts, they are copied again in turn. All else keeps its random weights.

    Args:
        model: with random weights.
        initial: the other model.
        source: what the settings name, for messages.
        class_names: of the model.

    Raises:
        InputError: the trunks differ.
    """
    trained, experts = initial.model.state_dict(), initial.model.num_experts
    metadata = initial.metadata
    # Without class counts, a run was converted from a checkpoint: its names are unknown, as those of a checkpoint.
    names = None if metadata is None or not metadata.class_counts else tuple(metadata.class_names)
    same_classes = initial.model.num_classes == len(class_names) and names in (None, tuple(class_names))
    copied: dict[str, Tensor] = {}
    numbers = {"branches": 0, "heads": 0}
    shared = {**model.trunk.state_dict(prefix="trunk."), **model.neck.state_dict(prefix="neck.")}
    found = _fitting(shared, trained, 0)
    ends, trained_ends = _network_names(model.state_dict()), _network_names(trained)
    problems = [name for name in shared if name.startswith("trunk.") and name not in found]
    problems += [name for name in trained if name.startswith("trunk.") and name.removeprefix("trunk.") not in ends]
    if problems:
        raise InputError(
            f"model.pretrained '{source}': its trunk is another one than that of the settings; they differ in "
            f"{shortened_list(problems, 3)}"
        )
    copied |= found
    for expert in range(model.num_experts):
        for part, is_wanted in (("branches", ends == trained_ends), ("heads", same_classes)):
            prefix = f"{part}.{expert}."
            tensors = {name: value for name, value in model.state_dict().items() if name.startswith(prefix)}
            found = _fitting(tensors, trained, expert % experts)
            if is_wanted and len(found) == len(tensors):
                copied |= found
                numbers[part] += 1
    model.load_state_dict(copied, strict=False)
    logger.info(
        "Initial weights of the trunk, and of %d of %s and %d of their heads: from %s",
        numbers["branches"],
        pluralize(model.num_experts, "expert"),
        numbers["heads"],
        source,
    )


def _network_names(weights: Mapping[str, Tensor]) -> set[str]:
    """Returns the names of the tensors of one expert's network, wherever its trunk ends."""
    return {PART.sub("", name) for name in weights if name.startswith(("trunk.", "branches.0.", "neck."))}


def _fitting(tensors: Mapping[str, Tensor], trained: Mapping[str, Tensor], expert: int) -> dict[str, Tensor]:
    """Returns the trained tensors for parts of a model, from the same part or, if the experts start elsewhere, another.

    Args:
        tensors: tensors of the model by name.
        trained: those of the other model.
        expert: of the other model.
    """
    found = {}
    for name, value in tensors.items():
        end = PART.sub("", name)
        parts = [f"heads.{expert}"] if name.startswith("heads.") else ["trunk", f"branches.{expert}", "neck"]
        match = next((trained[key] for part in parts if (key := f"{part}.{end}") in trained), None)
        if match is not None and match.shape == value.shape:
            found[name] = match
    return found


def _is_ours(path: Path) -> bool:
    try:
        with safe_open(path, framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False
