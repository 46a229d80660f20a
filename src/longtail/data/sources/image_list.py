"""Data sets of image files with list files, among them the published lists of three data sets. Decodes no image."""

import os
import stat
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtail.config.schema import DataConfig
from longtail.data.sources import register
from longtail.data.sources.image_files import is_printable
from longtail.data.splits import DataSplits, ImageSplit, as_paths
from longtail.utils.errors import InputError, raise_all

PUBLISHED = {
    "imagenet-lt": ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt"),
    "inaturalist2018": ("iNaturalist18_train.txt", None, "iNaturalist18_val.txt"),
    "places-lt": ("Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt"),
}
"""Training, validation and test list of each data set. What tests on iNaturalist 2018 is its validation part."""


@register("list")
def load_list(settings: DataConfig) -> DataSplits:
    root = Path(settings.root)
    names = root / settings.class_names if settings.class_names else None
    assert settings.train_list is not None
    assert settings.test_list is not None
    val = None if settings.val_list is None else root / settings.val_list
    return list_files(
        root,
        root / settings.train_list,
        val,
        root / settings.test_list,
        names,
        allow_outside=settings.allow_outside_root,
    )


@register("imagenet-lt", num_classes=1000)
@register("inaturalist2018", num_classes=8142)
@register("places-lt", num_classes=365)
def load_published(settings: DataConfig) -> DataSplits:
    root = Path(settings.root)
    names = root / settings.class_names if settings.class_names else None
    return published(settings.name, root, names, allow_outside=settings.allow_outside_root)


def list_files(
    root: Path,
    train: Path,
    val: Path | None,
    test: Path,
    class_names: Path | None = None,
    *,
    allow_outside: bool = False,
) -> DataSplits:
    """Reads list files with one 'path label' a line: paths start in ``root`` and may hold spaces, labels count from 0.

    Paths must stay in ``root`` unless ``allow_outside``: neither absolute nor with '..'. That is a check of the text:
    where a link inside ``root`` leads is up to those who made it.

    ``class_names`` has one name a line, in the order of the labels. Without it classes are called as the folders
    that hold their training images, where each class has one to itself; otherwise "0", "1" and so on.

    Raises:
        InputError: everything that is wrong with any of the files, each with its line.
    """
    if not root.is_dir():
        raise InputError(f"data.root '{root}' is not a folder; it must be the one where the paths of the lists start")
    problems: list[str] = []
    pictures = _PictureFinder(root, allow_outside)
    train_list = _read_list(train, pictures, problems)
    val_list = None if val is None else _read_list(val, pictures, problems)
    test_list = _read_list(test, pictures, problems)
    names: tuple[str, ...] | None = None
    if train_list is not None:
        num_classes = _check_classes(train, train_list, problems)
        for file, other in ((val, val_list), (test, test_list)):
            if file is not None and other is not None:
                _check_known(file, other, train_list, problems)
        if class_names is not None:
            names = _read_names(class_names, num_classes, problems)
    raise_all(problems)
    assert train_list is not None
    assert test_list is not None
    names = names or _names_from_folders(root, train_list, num_classes)
    return DataSplits(train_list.split(), None if val_list is None else val_list.split(), test_list.split(), names)


def published(name: str, root: Path, class_names: Path | None = None, *, allow_outside: bool = False) -> DataSplits:
    """ImageNet-LT, iNaturalist 2018 or Places-LT, by the lists they are published with, which lie in ``root``.

    ``class_names`` and ``allow_outside`` as in `list_files`.

    Raises:
        InputError: a list is not there, or anything is wrong with one.
    """
    train, val, test = PUBLISHED[name]
    needed = [file for file in (train, val, test) if file is not None]
    missing = [file for file in needed if not (root / file).is_file()]
    if missing:
        raise InputError(
            f"{name} needs {', '.join(needed)} in '{root}' (data.root), next to the folders of pictures that the lists "
            f"name; missing: {', '.join(missing)}"
        )
    lists = root / train, None if val is None else root / val, root / test
    return list_files(root, *lists, class_names, allow_outside=allow_outside)


class _List(NamedTuple):
    """What the lines of a list file say; one entry for each line with a label."""

    paths: list[Path]
    labels: NDArray[np.int64]
    lines: NDArray[np.int64]
    """pluralize from 1"""
    folders: set[tuple[int, str]]
    """Each label with the folders that hold its images"""

    def split(self) -> ImageSplit:
        return ImageSplit(self.labels, paths=as_paths(self.paths))


class _PictureFinder:
    """Tells what is wrong with the paths of lists, by one look into each folder instead of one for each file."""

    def __init__(self, root: Path, allow_outside: bool) -> None:
        self.root = root
        self._allow_outside = allow_outside
        self._names: dict[str, set[str]] = {}
        self._leading_out: dict[str, bool] = {}

    def problem(self, relative: str) -> str | None:
        """What is wrong with a path, if anything."""
        where = relative[: relative.rfind("/") + 1]
        name = relative[len(where) :]
        if where not in self._names:  # a million pictures lie in a few thousand folders
            self._leading_out[where] = not self._allow_outside and _leaves_root(where)
            self._names[where] = set() if self._leading_out[where] else self._look(where)
        strange = name == ".." or "\\" in name or ":" in name  # on Windows these may lead elsewhere
        if self._leading_out[where] or (strange and not self._allow_outside and _leaves_root(name)):
            return (
                f"'{_shortened(relative)}' leads out of data.root; paths must start and stay there "
                "(or set data.allow_outside_root)"
            )
        if name not in self._names[where] and not self._is_file(relative):
            return f"there is no file '{_shortened(relative)}' in '{self.root}' (data.root)"
        return None

    def _look(self, where: str) -> set[str]:
        try:
            with os.scandir(self.root / where) as entries:
                return {entry.name for entry in entries if entry.is_file()}
        except (OSError, ValueError):  # ValueError: a null character
            return set()

    def _is_file(self, relative: str) -> bool:
        # A file system may know the file by another spelling (capitals, accents) than the one it lists.
        try:
            return (self.root / relative).is_file()
        except OSError:  # a name that is too long
            return False


def _read_list(file: Path, pictures: _PictureFinder, problems: list[str]) -> _List | None:
    """Reads a list file; None where there is nothing to go on."""
    text = _read_text(file, problems)
    if text is None:
        return None
    paths, labels, lines = [], [], []
    folders: set[tuple[int, str]] = set()
    for number, line in enumerate(text.split("\n"), start=1):
        # From the right: a path may hold spaces.
        words = line.strip().rsplit(None, 1)
        if not words:
            continue
        relative, label = words if len(words) == 2 else (words[0], "")
        if not _is_label(label):
            found = f"'{_shortened(label)}' is not a label" if label else "the label is missing"
            problems.append(f"{file}:{number}: {found}; a line is 'path label', the label a whole number from 0")
            continue
        if problem := pictures.problem(relative):
            problems.append(f"{file}:{number}: {problem}")
        paths.append(pictures.root / relative)
        labels.append(int(label))
        lines.append(number)
        folders.add((labels[-1], relative[: relative.rfind("/") + 1]))
    if not text.strip():
        problems.append(f"{file}: the list is empty; a line is 'path label'")
    if not labels:
        return None
    return _List(paths, np.array(labels, dtype=np.int64), np.array(lines, dtype=np.int64), folders)


def _read_text(file: Path, problems: list[str]) -> str | None:
    try:
        if stat.S_ISFIFO(file.stat().st_mode):  # to read it might be to wait for ever
            problems.append(f"{file}: is a pipe; it must be a text file, which can be read again later")
            return None
        return file.read_text(encoding="utf-8-sig")  # some editors on Windows put a mark before the first line
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problems.append(f"{file}:{line}: not UTF-8 text; save the file in that encoding")
    except OSError as error:
        problems.append(f"{file}: {error.strerror}; it must be a text file, one entry a line")
    return None


def _is_label(word: str) -> bool:
    # At most nine digits: no data set has a billion classes, and every such number fits everywhere.
    return word.isascii() and word.isdecimal() and len(word) <= 9


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


def _leaves_root(relative: str) -> bool:
    path = PurePath(relative)
    return bool(path.anchor) or ".." in path.parts


def _check_classes(file: Path, train: _List, problems: list[str]) -> int:
    """Classes must be 0 to C - 1; returns C."""
    present = np.unique(train.labels)
    num_classes = int(present[-1]) + 1
    if len(present) == 1:
        problems.append(f"{file}: every label is {present[0]}; at least two classes are needed")
    elif len(present) < num_classes:
        # The gap before each label that does not follow the one before it.
        before = np.concatenate([[-1], present[:-1]])
        gaps = [(int(a) + 1, int(b) - 1) for a, b in zip(before, present, strict=True) if b > a + 1]
        absent = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in gaps)
        problems.append(
            f"{file}: no training image has label {absent}; labels must go from 0 to the number of classes - 1 "
            f"without a gap (the largest is {num_classes - 1})"
        )
    return num_classes


def _check_known(file: Path, other: _List, train: _List, problems: list[str]) -> None:
    """Each class of a validation or test list must be one of training; names the first line of each that is not."""
    labels, first, counts = np.unique(other.labels, return_index=True, return_counts=True)
    for i in np.flatnonzero(~np.isin(labels, train.labels)):
        more = f" (and on {counts[i] - 1} more lines)" if counts[i] > 1 else ""
        problems.append(
            f"{file}:{other.lines[first[i]]}: no training image has label {labels[i]}{more}; every class needs some"
        )


def _names_from_folders(root: Path, train: _List, num_classes: int) -> tuple[str, ...]:
    pairs = {(label, (root / where).name) for label, where in train.folders}
    different = len(pairs) == num_classes == len({label for label, _ in pairs}) == len({name for _, name in pairs})
    if different and all(is_printable(name) for _, name in pairs):
        return tuple(name for _, name in sorted(pairs))
    return tuple(str(label) for label in range(num_classes))


def _read_names(file: Path, num_classes: int, problems: list[str]) -> tuple[str, ...]:
    text = _read_text(file, problems)
    if text is None:
        return ()
    names = [line.strip() for line in text.rstrip().split("\n")]
    if len(names) != num_classes:
        problems.append(f"{file}: {len(names)} names for {num_classes} classes; there must be one name a line for each")
    first_lines: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            problems.append(f"{file}:{number}: the line is blank; it must name class {number - 1}")
        elif name in first_lines:
            problems.append(f"{file}:{number}: '{name}' is on line {first_lines[name]} too; names must differ")
        elif not is_printable(name):
            problems.append(f"{file}:{number}: {name!a} holds control characters; a name must be printable")
        first_lines.setdefault(name, number)
    return tuple(names)
