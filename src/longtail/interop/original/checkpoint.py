"""Reads checkpoint files of the original code without importing or executing what they ask for."""

import pickle
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longtail.utils.errors import InputError
from longtail.utils.paths import check_regular

OLD_FORMAT = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""First bytes of files of PyTorch before 1.6"""

PATHS = ("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath")
"""Classes of the standard library in the settings of the original"""

LIBRARIES = {*sys.stdlib_module_names, *IMPORT_MAPPING, "torch", "numpy"}
"""Modules with functions that could do harm, also by their names in Python 2. A checkpoint that needs one is refused"""


class OriginalCheckpoint(NamedTuple):
    """Content of a checkpoint file of the original code."""

    state_dict: dict[str, Tensor]
    """By original name"""

    epoch: int
    """Epochs trained; 0 if unknown"""

    arch: str
    """Class of the model, such as ``ResNet32Model``; empty for RIDE-Swin"""

    config: Mapping[str, Any]
    """Settings: of RIDE as in its config.json, of RIDE-Swin as in its YAML files"""


def read_original(path: Path) -> OriginalCheckpoint:
    """Reads a checkpoint of RIDE or RIDE-Swin, or a file with only a ``state_dict``.

    These files are pickles, which can ask for any function to be called. PyTorch's unpickler for weights calls only
    functions that rebuild tensors. Objects of the original's own classes (``parse_config.ConfigParser``,
    ``yacs.config.CfgNode``) become ordered dicts with the same content. Numbers of NumPy are dropped.

    Raises:
        InputError: the file is missing, damaged, of another kind, or asks for a function or class that no checkpoint
            needs.
    """
    check_regular(path)
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    if not start.startswith(b"PK\x03\x04"):
        raise InputError(f"{path}: {_other_kind(start)}")
    content = _load(path)
    content = content if isinstance(content, dict) else {}
    tensors = content.get("state_dict", content.get("model", content))
    if (
        not isinstance(tensors, dict)
        or not tensors
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items())
    ):
        raise InputError(f"{path}: has no tensors in 'state_dict' (RIDE) or 'model' (RIDE-Swin), or has other objects")
    if unusual := [name for name, tensor in tensors.items() if not _is_plain(tensor)]:
        raise InputError(f"{path}: refused: {unusual[0]!a} is not a dense array, or is larger than the file's data")
    epoch, arch = content.get("epoch"), content.get("arch")
    config = content.get("config")
    # RIDE's object has them in an attribute; RIDE-Swin's is a dict itself.
    settings = vars(config).get("_config", config) if isinstance(config, OrderedDict) else None
    return OriginalCheckpoint(
        dict(tensors),
        epoch + ("model" in content) if isinstance(epoch, int) and epoch >= 0 else 0,  # RIDE-Swin counts from 0
        arch if isinstance(arch, str) else "",
        settings if isinstance(settings, dict) else {},
    )


def _other_kind(start: bytes) -> str:
    if start.startswith(OLD_FORMAT):
        return "is in the format of PyTorch before 1.6; if you trust it, load it with torch.load and save it again"
    if start[8:9] == b"{":
        return "is a safetensors file, not a checkpoint of the original code; longtail.load_model reads model files"
    return "is not a checkpoint: files of torch.save are zip archives, this file is not (truncated, or of another kind)"


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is dense and its numbers are all in the file; strides of 0 can repeat one number."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_complex():
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _load(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:  # a compressed archive could unpack to any size
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise InputError(f"{path}: refused: it is compressed; files of torch.save are not")
        needed = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        if hostile := [name for name in needed if not _is_replaceable(name)]:
            raise InputError(f"{path}: refused: it asks for {', '.join(sorted(hostile))}, which no checkpoint needs")
        stand_ins: list[Any] = [(_Number if name in _NUMPY else _Object, name) for name in needed]
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:  # its message recommends to switch the protection off
        raise InputError(f"{path}: refused: its pickle does what no checkpoint of the original does") from error
    except Exception as error:  # a damaged file can raise anything
        reason = str(error).partition(". This is an internal")[0].partition("\n")[0]
        raise InputError(f"{path}: damaged, truncated or not a checkpoint ({reason})") from error


_NUMPY = ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
"""Classes and functions of NumPy's numbers"""


def _is_replaceable(name: str) -> bool:
    """Whether a class or function is the original's own or harmless, so that a stand-in can replace it."""
    return name in (*_NUMPY, *PATHS) or name.partition(".")[0] not in LIBRARIES


class _Object:
    """Replaces a class. Its objects are ordered dicts, which PyTorch's unpickler fills with the content."""

    def __new__(cls, *arguments: Any) -> OrderedDict[Any, Any]:  # type: ignore[misc]
        return OrderedDict()


class _Number:
    """Replaces NumPy's numbers and their types, and keeps nothing."""

    def __init__(self, *arguments: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass
