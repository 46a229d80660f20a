"""Finds image files. Decodes none."""

import logging
import os
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from longtail.data.image_io import HEIF_HINT, HEIF_SUFFIXES, is_image
from longtail.utils.errors import InputError
from longtail.utils.format import pluralize, shortened_list

logger = logging.getLogger(__name__)

LITTER = frozenset(
    [
        *("__macosx", "__pycache__", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information"),
        *("lost+found", "thumbs.db", "desktop.ini"),
    ]
)
"""Files and folders that systems and tools leave behind, in lower case. @eaDir holds thumbnails of the images"""


class FoundFiles(NamedTuple):
    """Files below a folder."""

    images: list[Path]
    """In order: of each folder the images first, then its subfolders, sorted by name"""
    others: Counter[str]
    """Number of other files, by extension"""


def find_images_below(folder: Path) -> FoundFiles:
    """Finds the images in a folder and all its subfolders. Skips hidden ones and `LITTER`, and follows links.

    Raises:
        InputError: a folder cannot be read, or is a link to a folder that contains it.
    """
    images: list[Path] = []
    others: Counter[str] = Counter()
    for directory, subfolders, files in os.walk(folder, onerror=_raise_unless_missing, followlinks=True):
        here = Path(directory)
        check_link(here)
        subfolders[:] = sorted(name for name in subfolders if not is_hidden(name))
        for path in (here / name for name in sorted(files) if not is_hidden(name)):
            if is_image(path):
                images.append(path)
            else:
                others[path.suffix.lower() or "without extension"] += 1
    return FoundFiles(images, others)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden or `LITTER`."""
    return name.startswith(".") or name.lower() in LITTER


def check_link(folder: Path) -> None:
    """Checks that a folder is no link to a folder that contains it.

    Raises:
        InputError: it is one.
    """
    if folder.is_symlink() and folder.resolve() in (parent.resolve() for parent in folder.parents):
        raise InputError(f"'{folder}' is a link to a folder that contains it; remove the link")


def log_skipped_files(folder: Path, others: Counter[str]) -> None:
    """Logs the files without a known image extension, which may be photos of another format."""
    if others:
        kinds = shortened_list([f"{number:,} {kind}" for kind, number in others.most_common()], 5)
        files = pluralize(others.total(), "file")
        hint = f"; {HEIF_HINT}" if HEIF_SUFFIXES & others.keys() else ""
        logger.info("Skipped %s in '%s' without a known image extension: %s%s", files, folder, kinds, hint)


def is_printable(name: str) -> bool:
    """Whether a name is text without control characters, line ends and undecodable bytes."""
    return not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):  # val and test need not have all class folders
        raise unreadable(error) from error


def unreadable(error: OSError) -> InputError:
    """Returns the error of a folder that cannot be read."""
    return InputError(f"{error.filename}: {error.strerror}; it must be a folder that can be read")
