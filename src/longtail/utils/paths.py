"""What kind of file a path is."""

from pathlib import Path

from longtail.utils.errors import InputError


def is_pipe_or_device(path: Path) -> bool:
    """Whether a path is neither a file nor a folder nor missing. To read it may never end."""
    return path.exists() and not (path.is_file() or path.is_dir())


def check_regular(path: Path) -> None:
    """Checks that a path is not a pipe or a device. A missing file is left to who reads it.

    Raises:
        InputError: it is one.
    """
    if is_pipe_or_device(path):
        raise InputError(f"{path}: is a pipe or a device; it must be a file")
