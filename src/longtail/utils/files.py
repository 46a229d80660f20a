"""Files that are whole or not there: written under another name first, and tensors with a checksum."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longtail.utils.errors import InputError

METADATA_KEY = "longtail"
"""Under it stands what a file says of itself, as JSON. One key, because safetensors writes several in any order."""

CHECKSUM = "sha256"
"""Name of the checksum therein: of the whole file, with zeros in its own place."""

UNFINISHED = ".unfinished"
"""End of the name of what is being written; whoever is killed then leaves it behind."""

_ZEROS = "0" * 64
_CHUNK = 2**20
_LONGEST_HEADER = 100_000_000  # safetensors' own limit, bytes


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file; whatever happens, ``path`` holds either the old content or the new one, whole.

    Raises:
        InputError: the disk is full or the folder cannot be written to; an earlier file is as it was.
    """
    with _replaced(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        _sync(file)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any], keep: Path | None = None
) -> None:
    """Writes a safetensors file with a checksum, as safely as `write_atomically`.

    Args:
        path: of the file.
        tensors: on any device.
        description: what else the file says, as JSON can.
        keep: where an earlier file goes, instead of being replaced.

    Raises:
        InputError: as `write_atomically`.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with _replaced(path, keep) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # as any file's here; safetensors would make it private
        save_file(plain, temporary, {METADATA_KEY: json.dumps({CHECKSUM: _ZEROS, **description})})
        with temporary.open("r+b") as file:
            header = _header(file)
            file.seek(header.index(_ZEROS.encode()))
            file.write(_checksum(file, header).encode())
            _sync(file)
        temporary.chmod(mode)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors, on the CPU, and description in a file of `write_tensors`. Executes nothing from it.

    Raises:
        InputError: the file is absent, damaged or of another kind, or its checksum, if it has one, is another.
    """
    with _opened(path) as file:
        description = _described(path, file)
        if CHECKSUM in description:
            _check(path, str(description.pop(CHECKSUM)))
        return {name: file.get_tensor(name) for name in file.keys()}, description  # noqa: SIM118


def read_description(path: Path) -> dict[str, Any]:
    """The description alone; the checksum is not looked at.

    Raises:
        InputError: the file is absent, damaged or of another kind.
    """
    with _opened(path) as file:
        description = _described(path, file)
    description.pop(CHECKSUM, None)
    return description


def _described(path: Path, file: Any) -> dict[str, Any]:
    text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise InputError(f"{path}: holds weights but no description of longtail's")
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its description is damaged ({error})") from error
    if not isinstance(description, dict):
        raise InputError(f"{path}: its description is damaged")
    return description


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error})") from error


@contextmanager
def _replaced(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Another path to write to, which takes the place of ``path`` at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield temporary
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | SafetensorError):
            raise InputError(f"{path} could not be written: {_reason(error)}") from error
        raise


def _reason(error: Exception) -> str:
    """Without what safetensors wraps around the system's own words."""
    text = getattr(error, "strerror", None) or str(error).rpartition("error: ")[2]
    return re.sub(r" \(os error \d+\)", "", text)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """A new name is safe when the folder that lists it is; not every system can open a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _header(file: BinaryIO) -> bytes:
    file.seek(0)
    length = file.read(8)
    return length + file.read(min(int.from_bytes(length, "little"), _LONGEST_HEADER))


def _checksum(file: BinaryIO, header: bytes) -> str:
    """Of a file that begins with this header; leaves the file where it was."""
    position = file.tell()
    digest = hashlib.sha256(header)
    file.seek(len(header))
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    file.seek(position)
    return digest.hexdigest()


def _check(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        header = _header(file)
        own = _checksum(file, header.replace(expected.encode(), _ZEROS.encode(), 1))
    if own != expected:
        raise InputError(f"{path}: damaged, its content does not have the checksum that it was written with")
