"""Data sets of image files with list files, such as the published lists of three data sets. Decodes no image."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from longtail.config.schema import DataConfig
from longtail.data.sources import register
from longtail.data.sources.image_files import is_printable
from longtail.data.splits import DataSplits, ImageSplit, as_paths
from longtail.utils.errors import InputError, raise_all

PUBLISHED_LISTS = {
    "imagenet-lt": ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt"),
    "inaturalist2018": ("iNaturalist18_train.txt", None, "iNaturalist18_val.txt"),
    "places-lt": ("Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt"),
}
"""Training, validation and test list. iNaturalist 2018 is tested on its validation split, as in the papers"""


@register("list")
def load(settings: DataConfig) -> DataSplits:
    """Loads ``data.train_list``, ``data.val_list`` and ``data.test_list``, see `read_lists`."""
    assert settings.train_list is not None
    assert settings.test_list is not None
    return read_lists(settings, settings.train_list, settings.val_list, settings.test_list)


@register("imagenet-lt", num_classes=1000)
@register("inaturalist2018", num_classes=8142)
@register("places-lt", num_classes=365)
def load_published(settings: DataConfig) -> DataSplits:
    """Loads a data set by its published lists, which are in ``data.root``; see `read_lists`."""
    lists, root = PUBLISHED_LISTS[settings.name], settings.root
    if missing := [name for name in lists if name is not None and not Path(root, name).is_file()]:
        raise InputError(
            f"{settings.name} needs its published lists in '{root}' (data.root), next to the folders of images; "
            f"missing: {', '.join(missing)}"
        )
    return read_lists(settings, *lists)


def read_lists(settings: DataConfig, train: str, val: str | None, test: str) -> DataSplits:
    """Reads list files with one 'path label' a line. Paths start in ``data.root`` and may hold spaces.

    Unless ``data.allow_outside_root`` is set, paths must not lead out of ``data.root``. This checks their text: a link
    inside may lead anywhere.

    ``data.class_names`` is a file with one name a line, in the order of the labels. Without it, classes have the names
    of the folders of their training images if these differ, and "0", "1" and so on otherwise.

    Raises:
        InputError: lists all problems of all files, each with its line.
    """
    root = Path(settings.root)
    if not root.is_dir():
        raise InputError(f"data.root '{root}' is not a folder; the paths of list files start there")
    problems: list[str] = []
    paths = _PathChecker(root, settings.allow_outside_root)
    train_list = _read_list(root / train, paths, problems)
    val_list = None if val is None else _read_list(root / val, paths, problems)
    test_list = _read_list(root / test, paths, problems)
    names: tuple[str, ...] | None = None
    if train_list.labels:
        _check_labels(train_list, [test_list] if val_list is None else [val_list, test_list], problems)
        num_classes = max(train_list.labels) + 1
        if settings.class_names:
            names = _read_class_names(root / settings.class_names, num_classes, problems)
    raise_all(problems)
    names = names or _folder_names(train_list, num_classes)
    return DataSplits(train_list.split(), None if val_list is None else val_list.split(), test_list.split(), names)


class _List(NamedTuple):
    """A list file, line by line."""

    file: Path
    paths: list[Path]
    labels: list[int]
    lines: list[int]
    """Line numbers, from 1"""

    def split(self) -> ImageSplit:
        return ImageSplit(np.array(self.labels, dtype=np.int64), paths=as_paths(self.paths))


class _PathChecker:
    """Finds problems with the paths of lists. Reads each folder once: a million images have a few thousand folders."""

    def __init__(self, root: Path, allow_outside: bool) -> None:
        self.root = root
        self._allow_outside = allow_outside
        self._files: dict[str, set[str]] = {}

    def problem(self, path: str) -> str | None:
        """Returns what is wrong with a path, or None."""
        if not self._allow_outside and _leaves_root(path):
            return f"'{_shortened(path)}' leads out of data.root (data.allow_outside_root allows that)"
        start = path.rfind("/") + 1
        folder, name = path[:start], path[start:]
        if folder not in self._files:
            self._files[folder] = _file_names(self.root / folder)
        # A file system may accept another spelling (upper case, accents) than the one that it lists.
        if name not in self._files[folder] and not os.path.isfile(self.root / path):  # noqa: PTH113 - never raises
            return f"there is no file '{_shortened(path)}' in '{self.root}' (data.root)"
        return None


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


def _read_list(file: Path, paths: _PathChecker, problems: list[str]) -> _List:
    found = _List(file, [], [], [])
    lines = _read_lines(file, problems)
    for number, line in enumerate(lines, start=1):
        words = line.strip().rsplit(None, 1)  # from the right, because paths may hold spaces
        if not words:
            continue
        path, label = words if len(words) == 2 else (words[0], "")
        # At most nine digits: more than any data set needs, and fits into all integer types.
        if not (label.isascii() and label.isdecimal() and len(label) <= 9):
            wrong = f"'{_shortened(label)}' is not a label" if label else "the label is missing"
            problems.append(f"{file}:{number}: {wrong}; a line is 'path label', and labels are integers from 0")
            continue
        if problem := paths.problem(path):
            problems.append(f"{file}:{number}: {problem}")
        found.paths.append(paths.root / path)
        found.labels.append(int(label))
        found.lines.append(number)
    if lines and not any(map(str.strip, lines)):
        problems.append(f"{file}: the list is empty; a line is 'path label'")
    return found


def _read_lines(file: Path, problems: list[str]) -> list[str]:
    """Reads a text file; returns nothing if that is impossible."""
    if not file.is_file():  # not a pipe either, which would block
        problems.append(f"{file}: is missing or not a file")
        return []
    try:
        return file.read_text(encoding="utf-8-sig").split("\n")  # some editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problems.append(f"{file}:{line}: is not UTF-8 text; save the file in that encoding")
    except OSError as error:
        problems.append(f"{file}: {error.strerror}")
    return []


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _check_labels(train: _List, others: Sequence[_List], problems: list[str]) -> None:
    """Checks that training labels are 0 to C - 1 and that there are no others."""
    present = set(train.labels)
    largest = max(present)
    if len(present) <= max(largest, 1):
        first = min(set(range(len(present) + 1)) - present)
        problems.append(
            f"{train.file}: no training image has label {first}; labels must be 0 to the number of classes - 1 without "
            f"gaps (the largest is {largest}), and at least two classes are needed"
        )
    for other in others:
        for label, line in zip(other.labels, other.lines, strict=True):
            if label not in present:
                problems.append(f"{other.file}:{line}: no training image has label {label}")


def _folder_names(train: _List, num_classes: int) -> tuple[str, ...]:
    """Returns the folder names of the classes if each has one folder, with a name of its own; otherwise numbers."""
    pairs = {(label, path.parent.name) for label, path in zip(train.labels, train.paths, strict=True)}
    names = tuple(name for _, name in sorted(pairs))
    if len(pairs) == num_classes == len(set(names)) and all(map(is_printable, names)):
        return names
    return tuple(map(str, range(num_classes)))


def _read_class_names(file: Path, num_classes: int, problems: list[str]) -> tuple[str, ...]:
    lines = _read_lines(file, problems)
    names = [line.strip() for line in "\n".join(lines).rstrip().split("\n")]
    if lines and len(names) != num_classes:
        problems.append(f"{file}: {len(names)} names for {num_classes} classes; write one name a line")
    seen: set[str] = set()
    for number, name in enumerate(names if lines else (), start=1):
        if not name or name in seen or not is_printable(name):
            problems.append(f"{file}:{number}: {name!a} is blank, not printable, or the name of another class")
        seen.add(name)
    return tuple(names)
