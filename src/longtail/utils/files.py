"""Atomic writes, and safetensors files with metadata and a checksum."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longtail.utils.csv_lines import csv_line
from longtail.utils.errors import InputError
from longtail.utils.paths import check_regular

METADATA_KEY = "longtail"
"""Key of a file's metadata, as JSON. The only key, because safetensors writes several keys in any order"""

CHECKSUM = "sha256"
"""Key of the checksum in the metadata: of the file with zeros in place of the checksum"""

UNFINISHED = ".unfinished"
"""End of the name of a file while it is being written. A process that is killed leaves this file behind"""

_ZEROS = "0" * 64
_CHUNK = 2**20


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under another name and then renames it, so that a crash leaves the old or the new file, complete.

    Raises:
        InputError: the disk is full or the folder is not writable. An earlier file is unchanged.
    """
    with _replacing(path) as temporary, temporary.open("wb") as file:
        file.write(content)
        _sync(file)


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes a CSV file, as safely as `write_atomically`; file names in it may hold bytes that are not text."""
    write_atomically(path, "".join(map(csv_line, rows)).encode(errors="surrogateescape"))


def write_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, Any],
    keep: Path | None = None,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Writes a safetensors file with metadata and a checksum, as safely as `write_atomically`.

    Args:
        path: of the file.
        tensors: on any device.
        metadata: values that JSON can hold.
        keep: new path of an earlier file; None: the earlier file is replaced.
        before: called when the new file is complete on the disk, before it replaces the earlier one. If it raises an
            error, the earlier file is unchanged.

    Raises:
        InputError: as `write_atomically`.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with _replacing(path, keep, before) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # that of other new files; safetensors makes its files private
        save_file(plain, temporary, {METADATA_KEY: json.dumps({CHECKSUM: _ZEROS, **metadata})})
        checksum = _checksum(temporary, _ZEROS)
        with temporary.open("r+b") as file:
            file.seek(file.read(_CHUNK).index(_ZEROS.encode()))
            file.write(checksum.encode())
            _sync(file)
        temporary.chmod(mode)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the tensors, on the CPU, and the metadata of a file of `write_tensors`. Executes nothing from the file.

    Raises:
        InputError: the file is missing, damaged or of another kind. A file without a checksum is accepted.
    """
    with _open(path) as (file, metadata):
        checksum = metadata.pop(CHECKSUM, None)
        if checksum is not None and _checksum(path, str(checksum)) != checksum:
            raise ValueError("damaged: its content does not match its checksum")
        return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, Any]:
    """Reads only the metadata of a file of `write_tensors`, without checking the checksum.

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    with _open(path) as (_, metadata):
        metadata.pop(CHECKSUM, None)
        return metadata


@contextmanager
def _open(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    check_regular(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            if not isinstance(metadata, dict):
                raise ValueError("the metadata of longtail is missing or damaged")
            yield file, metadata
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as a safetensors file of longtail ({error})") from error


@contextmanager
def _replacing(path: Path, keep: Path | None = None, before: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yields another path to write to, which replaces ``path`` at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield temporary
        before()
        if keep is not None and path.exists():
            path.replace(keep)
        temporary.replace(path)
        _sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | SafetensorError):
            # safetensors reports "I/O error: File too large (os error 27)".
            reason = getattr(error, "strerror", None) or re.sub(r".*error: | \(os error \d+\)", "", str(error))
            raise InputError(f"{path} could not be written: {reason}") from error
        raise


def _checksum(path: Path, written: str) -> str:
    """Returns the checksum of a file that contains the checksum ``written``."""
    with path.open("rb") as file:
        length = file.read(8)
        header = length + file.read(int.from_bytes(length, "little"))
        digest = hashlib.sha256(header.replace(written.encode(), _ZEROS.encode(), 1))
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the new name durable. Not every system can open a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
