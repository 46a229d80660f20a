"""Finds the image files that list files name, in the ways that people write paths."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from longtail.data.sources.image_files import is_hidden
from longtail.data.sources.split_names import parse_split_name

SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
"""What lists of identifiers leave out"""

MAX_FOLDERS = 100
"""Folders next to a list in which its files are looked for, at most"""


class PathPattern(NamedTuple):
    """Where the files of a list are: a prefix + path in the list + suffix is a path from data.root."""

    prefixes: tuple[str, ...]
    suffix: str

    def paths(self, text: str) -> list[str]:
        """The paths from data.root that a text can mean."""
        return [f"{prefix}{text}{self.suffix}" for prefix in self.prefixes]


ROOT = PathPattern(("",), "")


class ListPaths:
    """Finds the files of lists. Reads each folder once: a million images have a few thousand folders."""

    def __init__(self, root: Path, allow_outside: bool) -> None:
        self.root = root
        self._starts = tuple({f"{folder}{os.sep}" for folder in (root, root.absolute(), root.resolve())})
        self._allow_outside = allow_outside
        self._files: dict[str, set[str]] = {}

    def find_pattern(self, folder: Path, texts: Sequence[str]) -> PathPattern:
        """Returns where the files are that some lines of a list name: from the root, the list's folder or those in it.

        If some are found from the root, all must be: a missing file could have the name of another one elsewhere.
        """
        if any(self._matches(text, ROOT) for text in texts):
            return ROOT
        prefixes = self._prefixes(folder)
        singles = [PathPattern((prefix,), suffix) for suffix in SUFFIXES for prefix in prefixes]
        hits = {pattern: sum(bool(self._matches(text, pattern)) for text in texts) for pattern in singles}
        best = max(hits, key=lambda pattern: hits[pattern])  # the first of equal ones
        if not hits[best]:
            return ROOT
        # One line may be a header.
        return best if hits[best] >= len(texts) - 1 else PathPattern(prefixes, best.suffix)

    def find(self, text: str, pattern: PathPattern) -> str | None:
        """Returns the path from the root of a file that a list names; None if there is none, or several."""
        if matches := self._matches(text, pattern):
            return matches[0] if len(matches) == 1 else None
        # A file system may accept another spelling (upper case, accents) than the one that it lists.
        return text if self._is_allowed(text) and os.path.isfile(self.root / text) else None  # noqa: PTH113 - never raises

    def problem(self, text: str, pattern: PathPattern) -> str:
        """Returns why there is no such file, with {} for the text."""
        if len(self._matches(text, pattern)) > 1:
            return f"there are several files '{{}}' in the folders of '{self.root}'"
        if not self._is_allowed(self._spellings(text)[0]):
            return "'{}' leads out of data.root (data.allow_outside_root allows that)"
        return f"there is no file '{{}}' in '{self.root}' (data.root)"

    def _matches(self, text: str, pattern: PathPattern) -> list[str]:
        """The files that a text can mean, by its first spelling that means any."""
        found = ([path for path in pattern.paths(spelling) if self._exists(path)] for spelling in self._spellings(text))
        return next(filter(None, found), [])

    def _exists(self, path: str) -> bool:
        start = path.rfind("/") + 1
        folder, name = path[:start], path[start:]
        if not self._is_allowed(path):
            return False
        if folder not in self._files:
            self._files[folder] = _file_names(self.root / folder)
        return name in self._files[folder]

    def _spellings(self, text: str) -> list[str]:
        """The path as it is, or from the root if it is absolute; and with slashes for the backslashes of Windows."""
        for start in self._starts if text.startswith(os.sep) else ():
            text = text.removeprefix(start)
        return [text, text.replace("\\", "/")] if "\\" in text else [text]

    def _is_allowed(self, path: str) -> bool:
        return self._allow_outside or not _leaves_root(path)

    def _prefixes(self, folder: Path) -> tuple[str, ...]:
        """Of the root, the folder and those in it; train first, because test images can have the same names."""
        if not folder.is_dir() or not folder.is_relative_to(self.root):
            return ("",)
        inner = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name))
        inner.sort(key=lambda entry: (parse_split_name(entry.name) or ("other",))[0] != "train")
        folders = [path.relative_to(self.root) for path in (self.root, folder, *inner[:MAX_FOLDERS])]
        return tuple(dict.fromkeys(f"{path.as_posix()}/" if path.parts else "" for path in folders))


def shortened(text: str) -> str:
    """Returns a text of a list, cut off for a message."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def _leaves_root(path: str) -> bool:
    # A quick look first, for a million paths. On Windows, paths with a colon or a backslash can be absolute.
    if not path.startswith("/") and not any(mark in path for mark in ("..", ":", "\\")):
        return False
    return bool(PurePath(path).anchor) or ".." in PurePath(path).parts


def _file_names(folder: Path) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (OSError, ValueError):  # ValueError: a null character
        return set()
