"""Finds image files. Decodes none."""

import logging
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from longtail.data.image_io import is_image
from longtail.utils.errors import InputError
from longtail.utils.format import pluralize

logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """What lies in a folder and the folders in it."""

    pictures: list[Path]
    """in order"""
    others: Counter[str]
    """How many other files there are of each ending"""


def find_images_below(where: Path) -> Found:
    """The pictures in a folder and the folders in it; what is hidden is left out. Links are followed.

    Raises:
        InputError: a folder cannot be read, or is a link to one that it lies in.
    """
    found: list[Path] = []
    others: Counter[str] = Counter()
    for directory, subfolders, files in os.walk(where, onerror=_refuse, followlinks=True):
        here = Path(directory)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        if links := [path for name in subfolders if (path := here / name).is_symlink()]:
            # The links on the way here count too: two folders may hold links to each other.
            way = [folder.resolve() for folder in (here, *here.parents[: len(here.relative_to(where).parts)])]
            for link in links:
                if any(folder.is_relative_to(link.resolve()) for folder in way):
                    raise InputError(f"'{link}' is a link to a folder that it lies in; remove it")
        paths = (here / name for name in sorted(files) if not name.startswith("."))
        for path in paths:
            if is_image(path):
                found.append(path)
            else:
                others[path.suffix.lower() or "without an ending"] += 1
    return Found(found, others)


def log_skipped_files(where: Path, others: Counter[str]) -> None:
    """A note that there are files which, by their names, are no pictures: a camera's own kind may be among them."""
    if others:
        kinds = [f"{number:,} {kind}" for kind, number in others.most_common(5)]
        more = [f"{len(others) - 5:,} other kinds"] if len(others) > 5 else []
        files = pluralize(others.total(), "file is left out, no picture", "files are left out, no pictures")
        logger.info("'%s': %s by name: %s", where, files, ", ".join([*kinds, *more]))


def _refuse(error: OSError) -> None:
    if isinstance(error, FileNotFoundError | NotADirectoryError):  # validation and test need not have every class
        return
    raise InputError(f"{error.filename}: {error.strerror}; it must be a folder that can be read")


def is_printable(name: str) -> bool:
    """Whether a name can stand in a report: text without control characters, line ends or undecodable bytes."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)
