"""Arrays in files that are mapped into memory: they take as much memory as is free, and outlive a process."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from longtail.utils.files import write_atomically


class MappedArrays:
    """Arrays of zeros in a folder, or what was written into them before.

    Args:
        folder: of the files.
        arrays: type and shape of each array.
    """

    def __init__(self, folder: Path, arrays: Sequence[tuple[Any, tuple[int, ...]]]):
        self.folder = folder
        self._arrays = [(np.dtype(dtype), shape) for dtype, shape in arrays]
        self._files = [folder / f"{number}.bin" for number in range(len(arrays))]
        self._sizes = [int(np.prod(shape)) * dtype.itemsize for dtype, shape in self._arrays]

    @property
    def num_bytes(self) -> int:
        """Size of all arrays."""
        return sum(self._sizes)

    def create(self, identity: str) -> None:
        """Makes the files, unless they are there.

        Args:
            identity: of the content; files of another one are replaced.

        Raises:
            OSError: the disk is full. Nothing is left behind.
        """
        content = f"{identity}\n{[(str(dtype), shape) for dtype, shape in self._arrays]}\n".encode()
        marker = self.folder / "identity"
        if marker.is_file() and marker.read_bytes() == content:
            return
        self.remove()
        self.folder.mkdir()
        try:
            for path, size in zip(self._files, self._sizes, strict=True):
                _allocate(path, size)
            write_atomically(marker, content)
        except BaseException:
            self.remove()
            raise

    def open(self) -> list[np.memmap[Any, Any]]:
        """Returns the arrays. What is written into them reaches the files in time, or when they are flushed."""
        return [
            np.memmap(path, dtype, "r+", shape=shape)
            for path, (dtype, shape) in zip(self._files, self._arrays, strict=True)
        ]

    def remove(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _allocate(path: Path, size: int) -> None:
    """Makes a file of zeros that has its place on the disk: a full disk would end the process at a later write."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
