"""Data sets of image files with list files, such as the published lists of three data sets. Decodes no image."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longtail.config.schema import DataConfig
from longtail.data.image_io import is_image
from longtail.data.sources import register
from longtail.data.sources.class_names import describe_difference, find_similar, log_left_out
from longtail.data.sources.image_files import is_printable
from longtail.data.sources.label_table import Row, read_table
from longtail.data.sources.list_paths import ListPaths, shortened
from longtail.data.sources.split_names import VAL_IS_TEST, parse_split_name
from longtail.data.splits import DataSplits, ImageSplit, hold_out_test
from longtail.utils.errors import InputError, raise_all
from longtail.utils.format import pluralize, shortened_list

logger = logging.getLogger(__name__)

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


def read_lists(settings: DataConfig, train: str, val: str | None, test: str | None) -> DataSplits:
    """Reads list files; see `longtail.data.sources.label_table.read_table` for their formats.

    Paths start in ``data.root`` or in the folder of the list, and may hold spaces. Unless ``data.allow_outside_root``
    is set, paths must not lead out of ``data.root``. This checks their text: a link inside may lead anywhere.

    A list with a column of splits is used for the split that each line names. Without test images, test images are held
    out of the training images as for image folders.

    Labels are integers from 0 or from 1, or names. ``data.class_names`` is a file with one name a line, in the order of
    the labels. Without it, numbered classes have the names of the folders of their training images if these differ, and
    their numbers otherwise.

    Raises:
        InputError: lists all problems of all files, each with its first lines.
    """
    root = Path(settings.root)
    if not root.is_dir():
        raise InputError(f"data.root '{root}' is not a folder; the paths of list files start there")
    problems = _Problems()
    paths = ListPaths(root, settings.allow_outside_root)
    files = {split: root / name for split, name in (("train", train), ("val", val), ("test", test)) if name is not None}
    lists = _by_split({split: _read_list(file, paths, problems) for split, file in files.items()})
    names: tuple[str, ...] = ()
    labels: dict[str, list[int]] = {}
    if lists["train"].labels:
        listed = _read_class_names(root / settings.class_names, problems) if settings.class_names else None
        encode = _encode_numbers if _are_numbers(lists) else _encode_names
        lists, labels, names = encode(lists, listed, problems)
    raise_all(problems.texts())
    splits = {
        split: ImageSplit(np.array(labels[split], dtype=np.int64), paths=np.array(found.paths, dtype=object))
        for split, found in lists.items()
    }
    if "test" not in splits:
        source = f"'{files['train']}'"
        logger.info("There is no list of test images, so they are held out of %s", source)
        return hold_out_test(splits["train"], names, settings.test_fraction, settings.subset_seed, source)
    return DataSplits(splits["train"], splits.get("val"), splits["test"], names)


class _List(NamedTuple):
    """A list file, line by line."""

    file: Path
    paths: list[Path]
    labels: list[str]
    lines: list[int]
    """Line numbers, from 1"""
    splits: list[str]
    """Of each line; empty without a column of splits"""

    def take(self, positions: Sequence[int]) -> "_List":
        """The lines at these positions."""
        paths, labels, lines = self.paths, self.labels, self.lines
        return _List(
            self.file, [paths[i] for i in positions], [labels[i] for i in positions], [lines[i] for i in positions], []
        )


class _Problems:
    """Problems of list files: one text for each kind, with its first three lines."""

    def __init__(self) -> None:
        self._found: dict[tuple[Path, str], list[tuple[int, str]]] = {}

    def add(self, file: Path, kind: str, line: int = 0, value: str = "") -> None:
        """Adds a problem: ``{}`` in its kind stands for the value; line 0 is the whole file."""
        self._found.setdefault((file, kind), []).append((line, shortened(value)))

    def concern(self, file: Path) -> bool:
        """Whether a file has problems."""
        return any(file == known for known, _ in self._found)

    def texts(self) -> list[str]:
        """One text for each kind."""
        return [_problem_text(file, kind, found) for (file, kind), found in self._found.items()]


def _problem_text(file: Path, kind: str, found: list[tuple[int, str]]) -> str:
    (line, value), *others = found
    text = f"{file}:{line}: " if line else f"{file}: "
    text += kind.replace("{}", value)
    if others:
        examples = shortened_list([f"{line} ('{value}')" for line, value in others], 2)
        text += f"; the same in {'line' if len(others) == 1 else 'lines'} {examples}"
    return text


def _read_list(file: Path, paths: ListPaths, problems: _Problems) -> _List:
    table = read_table(file, _read_text(file, problems), paths)
    if table.problem:
        problems.add(file, table.problem)
    elif not table.rows and not problems.concern(file):
        problems.add(file, "the list is empty; a line is 'path label'")
    rows: list[Row] = []
    found: list[Path] = []
    for row in table.rows:
        path = paths.find(row.path, table.pattern)
        has_label = row.label and not (path is None and is_image(Path(row.label)))  # a path with spaces
        if not has_label:
            line = f"{row.path} {row.label}".rstrip()
            problems.add(file, "the label is missing in '{}'; a line is 'path label'", row.line, line)
        elif path is None:
            problems.add(file, paths.problem(row.path, table.pattern), row.line, row.path)
        # A wrong path is no reason to report its class as one without images.
        if has_label:
            rows.append(row)
            found.append(paths.root / (row.path if path is None else path))
    splits = [_split_of(file, row, problems) for row in rows] if any(row.split for row in rows) else []
    return _List(file, found, [row.label for row in rows], [row.line for row in rows], splits)


def _split_of(file: Path, row: Row, problems: _Problems) -> str:
    name = parse_split_name(row.split)
    if name is None:
        problems.add(file, "'{}' is not a split; it must be train, val or test", row.line, row.split)
    return name.split if name is not None else ""


def _by_split(lists: dict[str, _List]) -> dict[str, _List]:
    """Returns the lines of each split: those of its list that name no other split, or all those that name it."""
    train = lists["train"]
    if len(lists) == 1 and train.splits:
        lists = {split: train for split in ("train", "val", "test") if split == "train" or split in train.splits}
    lists = {
        split: found.take([i for i, name in enumerate(found.splits) if name == split]) if found.splits else found
        for split, found in lists.items()
    }
    if "val" in lists and "test" not in lists:
        logger.info(VAL_IS_TEST)
        lists["test"] = lists.pop("val")
    return lists


def _read_text(file: Path, problems: _Problems) -> str:
    """Reads a text file; returns nothing if that is impossible."""
    if not file.is_file():  # not a pipe either, which would block
        problems.add(file, "is missing or not a file")
        return ""
    try:
        return file.read_text(encoding="utf-8-sig")  # some editors on Windows write a byte order mark
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        problems.add(file, "is not UTF-8 text; save the file in that encoding", line)
    except OSError as error:
        problems.add(file, str(error.strerror))
    return ""


# ---- labels ----


class _Labels(NamedTuple):
    """What the labels of lists mean."""

    lists: dict[str, _List]
    """Without the lines of classes that have no training images"""
    labels: dict[str, list[int]]
    """Split -> label of each line, from 0"""
    names: tuple[str, ...]
    """Of the classes"""


def _is_number(label: str) -> bool:
    # At most nine digits: more than any data set needs, and fits into all integer types.
    return label.isascii() and label.isdecimal() and len(label) <= 9


def _are_numbers(lists: Mapping[str, _List]) -> bool:
    """Whether most labels are numbers; the others are then errors of writing."""
    labels = [label for found in lists.values() for label in found.labels]
    return 2 * sum(map(_is_number, labels)) > len(labels)


def _encode_numbers(lists: dict[str, _List], names: list[str] | None, problems: _Problems) -> _Labels:
    """Checks that training labels are first to first + C - 1, first 0 or 1, and that there are no others."""
    numbers: dict[str, list[int]] = {}
    for split, found in lists.items():
        for label, line in zip(found.labels, found.lines, strict=True):
            if not _is_number(label):
                problems.add(found.file, "'{}' is not a label; labels are integers from 0, or names", line, label)
        numbers[split] = [int(label) if _is_number(label) else -1 for label in found.labels]
    present = set(numbers["train"]) - {-1}
    if not present:
        return _Labels(lists, numbers, ())
    largest, train = max(present), lists["train"]
    first = int(min(present) == 1 and 0 not in set().union(*numbers.values()))
    if len(present) <= max(largest - first, 1):
        gap = min(set(range(first, len(present) + first + 1)) - present)
        problems.add(
            train.file,
            f"no training image has label {gap}; labels must be 0 to the number of classes - 1 without gaps (the "
            f"largest is {largest}), and at least two classes are needed",
        )
        return _Labels(lists, numbers, ())
    for split, found in lists.items():
        for number, line in zip(numbers[split], found.lines, strict=True):
            if number not in present and number != -1:
                problems.add(found.file, "no training image has label {}", line, str(number))
    if first:
        logger.info("The labels of '%s' count from 1", train.file)
    labels = {split: [number - first for number in of_split] for split, of_split in numbers.items()}
    classes = largest + 1 - first
    if names is not None and len(names) != classes:
        file_names, needed = pluralize(len(names), "name"), pluralize(classes, "class", "classes")
        problems.add(train.file, f"data.class_names has {file_names} for {needed}; write one name a line")
    return _Labels(
        lists, labels, tuple(names) if names is not None else _folder_names(train, labels["train"], classes, first)
    )


def _encode_names(lists: dict[str, _List], names: list[str] | None, problems: _Problems) -> _Labels:
    """Numbers classes that are given by name, in the order of ``names`` or else sorted."""
    train = lists["train"]
    present = set(train.labels)
    for label, line in zip(train.labels, train.lines, strict=True):
        if names is not None and label not in names:
            problems.add(train.file, "'{}' is not in data.class_names", line, label)
        if not is_printable(label):
            problems.add(train.file, "a class name holds line ends or control characters", line)
    if len(present) < 2:
        problems.add(train.file, f"all labels are '{shortened(min(present))}'; at least two classes are needed")
    classes = [name for name in names if name in present] if names is not None else sorted(present)
    numbers = {name: number for number, name in enumerate(classes)}
    known: dict[str, _List] = {}
    for split, found in lists.items():
        unknown = sorted(set(found.labels) - present)
        for name in list(unknown):
            if similar := find_similar(name, classes):
                unknown.remove(name)
                difference = describe_difference(name, similar)
                line = found.lines[found.labels.index(name)]
                text = f"'{name}' and the training class '{similar}' differ only {difference}; write both the same way"
                problems.add(found.file, text, line)
        known[split] = found.take([i for i, label in enumerate(found.labels) if label in present]) if unknown else found
        if unknown and not known[split].labels:
            problems.add(found.file, "holds no class of the training split")
        elif unknown:
            log_left_out(split, unknown, len(found.labels) - len(known[split].labels))
    labels = {split: [numbers.get(label, -1) for label in found.labels] for split, found in known.items()}
    return _Labels(known, labels, tuple(classes))


def _folder_names(train: _List, labels: Sequence[int], num_classes: int, first: int) -> tuple[str, ...]:
    """Returns the folder names of the classes if each has one folder, with a name of its own; otherwise numbers."""
    pairs = {(label, path.parent.name) for label, path in zip(labels, train.paths, strict=True)}
    names = tuple(name for _, name in sorted(pairs))
    if len(pairs) == num_classes == len(set(names)) and all(map(is_printable, names)):
        return names
    return tuple(str(number + first) for number in range(num_classes))


def _read_class_names(file: Path, problems: _Problems) -> list[str] | None:
    text = _read_text(file, problems)
    names = [line.strip() for line in text.rstrip().split("\n")]
    seen: set[str] = set()
    for number, name in enumerate(names if text else (), start=1):
        if not name or name in seen or not is_printable(name):
            problems.add(file, "{} is blank, not printable, or the name of another class", number, ascii(name))
        seen.add(name)
    return None if problems.concern(file) else names
