"""Checkpoint files of the original repositories, read without importing or executing anything that they ask for."""

import pickle
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from longtail.utils.errors import InputError

OLD_FORMAT = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""What files of PyTorch before 1.6 begin with."""

SCALARS = ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")

PATHS = ("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath")
"""Of the standard library, what the original's settings hold."""

LIBRARIES = {*sys.stdlib_module_names, *IMPORT_MAPPING, "torch", "numpy"}
"""Here is what could do harm, also under Python 2's names: a checkpoint that asks for any of it is refused."""


class OriginalCheckpoint(NamedTuple):
    """What an original checkpoint file holds."""

    state_dict: dict[str, Tensor]
    """Under the original's names"""

    epoch: int
    """Epochs trained; 0 where the file does not say"""

    arch: str
    """Class of the model, such as ``ResNet32Model``; empty in RIDE-Swin's files"""

    config: Mapping[str, Any]
    """RIDE's settings, as they stand in its config.json; empty in RIDE-Swin's files"""


def read_original(path: Path) -> OriginalCheckpoint:
    """Reads a checkpoint that RIDE or RIDE-Swin saved, or a mere ``state_dict``.

    These files hold pickled Python objects, and a pickle can ask for any function to be called. PyTorch's unpickler
    for weights calls nothing but what rebuilds tensors. The original's own classes (``parse_config.ConfigParser``,
    ``yacs.config.CfgNode``) become ordered dicts that keep the contents; NumPy's scalars become Python's.

    Raises:
        InputError: the file is absent, damaged, of another kind, or asks for a function or class that no checkpoint
            needs.
    """
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if not start.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}: {_other_kind(start)}")
    content = _load(path)
    tensors = content.get("state_dict", content.get("model", content)) if isinstance(content, dict) else None
    if (
        not isinstance(tensors, dict)
        or not tensors
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items())
    ):
        raise InputError(f"{path}: has neither 'state_dict' (RIDE) nor 'model' (RIDE-Swin) with nothing but tensors")
    assert isinstance(content, dict)
    if strange := [name for name, tensor in tensors.items() if not _is_plain(tensor)]:
        raise InputError(
            f"{path}: refused: {strange[0]!a} is no plain array of numbers, or larger than what the file holds"
        )
    arch = content.get("arch")
    epoch = content.get("epoch", 0)
    settings = vars(config).get("_config") if isinstance(config := content.get("config"), OrderedDict) else None
    return OriginalCheckpoint(
        dict(tensors),
        # RIDE-Swin counts epochs from 0.
        (epoch + ("model" in content and "epoch" in content)) if isinstance(epoch, int) and epoch >= 0 else 0,
        arch if isinstance(arch, str) else "",
        settings if isinstance(settings, dict) else {},
    )


def _other_kind(start: bytes) -> str:
    if start.startswith(OLD_FORMAT):
        return "is in the format of PyTorch before 1.6; load it with PyTorch, if you trust it, and save it again"
    if start[8:9] == b"{":
        return "is a safetensors file and not a checkpoint of the original; longtail.load_model reads our own"
    return "is not a checkpoint: files of torch.save are zip archives, this one is not (truncated, or of another kind)"


def _is_plain(tensor: Tensor) -> bool:
    """Not sparse, quantized or without contents; and not a huge one that repeats a single number."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _check_archive(path: Path) -> None:
    """A compressed archive could unpack to any size; those of torch.save are not compressed."""
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise InputError(f"{path}: refused: its parts are compressed, which those of a checkpoint are not")


def _load(path: Path) -> Any:
    try:
        _check_archive(path)
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if hostile := [name for name in asked if not _harmless(name)]:
            raise InputError(f"{path}: refused: it asks for {', '.join(sorted(hostile))}, which no checkpoint needs")
        substitutes: list[Any] = [(_SUBSTITUTES.get(name, _StandIn), name) for name in asked]
        with torch.serialization.safe_globals(substitutes):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:  # its message recommends to switch the protection off
        raise InputError(f"{path}: refused: its pickle does what no checkpoint of the original does") from error
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).partition(". This is an internal")[0].partition("\n")[0]
        raise InputError(f"{path}: damaged, truncated or not a checkpoint ({reason})") from error


def _harmless(name: str) -> bool:
    """Whether an inert object may take the place of this class: it is the original's own, or known."""
    return name in _SUBSTITUTES or name in PATHS or name.partition(".")[0] not in LIBRARIES


class _StandIn:
    """Takes the place of a class; its objects are ordered dicts, which PyTorch's unpickler fills with the contents."""

    def __new__(cls, *arguments: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _ScalarType:
    """Takes the place of NumPy's dtype, which does not check what a pickle sets in it."""

    def __init__(self, code: str, *flags: bool):
        self.code, self.order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


def _scalar(kind: _ScalarType, content: bytes) -> Any:
    if kind.code not in SCALARS or kind.order not in ("=", "<", ">", "|"):
        raise pickle.UnpicklingError(f"NumPy scalar of type '{kind.code}'")
    return np.frombuffer(content, kind.order + kind.code)[0].item()


_SUBSTITUTES: dict[str, Any] = {
    "numpy.dtype": _ScalarType,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}
