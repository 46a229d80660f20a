"""Turns a tree of folders into splits and classes. Reads the names of files only.

A class is a folder with images in it or below it. A split is a folder of classes that is recognised by its name, or by
holding the same classes as another split. What could be read in two ways is refused: a wrong guess trains on nonsense.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from longtail.data.image_io import HEIF_HINT, HEIF_SUFFIXES, is_image
from longtail.data.sources.image_files import check_link, find_images_below, is_hidden, unreadable
from longtail.data.sources.split_names import VAL_IS_TEST, SplitName, parse_split_name
from longtail.utils.errors import InputError
from longtail.utils.format import shortened_list

_PART = re.compile(r"(?<![a-z])(part|fold|batch|chunk|shard|subset|split|set|image|img)(?=s?(?![a-z]))")

_KINDS = frozenset(
    [
        *("image", "img", "picture", "photo", "jpeg", "jpegimage", "jpg", "png", "rgb", "depth", "thumbnail"),
        *("mask", "label", "annotation", "gt", "groundtruth", "segmentation", "segmentationclass"),
    ]
)
"""Names of folders that say what kind of files they hold, in lower case and without s at the end"""

SHOWN = 5
"""Names that a message shows"""


class NoClassFolders(InputError):
    """Images are not in class folders, so a list may say their classes."""


class Layout(NamedTuple):
    """Where the images of each class of each split are."""

    splits: dict[str, dict[str, Path]]
    """Split -> class -> folder. Without test, test images are to be held out of train"""

    empty: list[Path]
    """Folders that would be classes of train, but hold no images"""

    notes: list[str]
    """What was assumed, one line each"""


class Folder:
    """A folder and what matters below it. Each folder is listed once, when it is needed."""

    def __init__(self, path: Path):
        self.path, self.name = path, path.name

    @cached_property
    def _entries(self) -> tuple[list["Folder"], bool]:
        check_link(self.path)
        try:
            with os.scandir(self.path) as entries:
                shown = sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
                folders = [Folder(self.path / entry.name) for entry in shown if entry.is_dir()]
                return folders, any(is_image(Path(entry.name)) and not entry.is_dir() for entry in shown)
        except OSError as error:
            raise unreadable(error) from error

    @property
    def has_own_images(self) -> bool:
        """Whether images are directly in it."""
        return self._entries[1]

    @cached_property
    def has_images(self) -> bool:
        """Whether there are images in it or below it."""
        return self.has_own_images or any(folder.has_images for folder in self._entries[0])

    @cached_property
    def classes(self) -> dict[str, "Folder"]:
        """Subfolders with images, by name: its classes, if it is not a class itself."""
        return {folder.name: folder for folder in self._entries[0] if folder.has_images}

    @property
    def holds_classes(self) -> bool:
        """Whether it, or a single folder in it, holds several folders with images."""
        return len(self.classes) > 1 or any(folder.holds_classes for folder in self.classes.values())

    @property
    def empty(self) -> list[Path]:
        """Subfolders without images."""
        return [folder.path for folder in self._entries[0] if not folder.has_images]

    @property
    def paths(self) -> dict[str, Path]:
        """The paths of its classes."""
        return {name: folder.path for name, folder in self.classes.items()}


def read_layout(root: Path) -> Layout:
    """Finds the splits and classes of a data set.

    In this order: folders of splits that hold class folders; class folders that each hold folders of splits; class
    folders. A single folder around all of them is entered.

    Raises:
        InputError: the folders can be read in two ways, or a split is missing.
    """
    notes: list[str] = []
    top = _enter(Folder(root), notes)
    if splits := _find_splits(top, notes):
        return _layout_of_splits(splits, notes)
    if by_class := _splits_in_classes(top):
        _check_not_data_sets(top)
        _check_not_numbered(top)
        notes.append(f"Each class folder in '{top.path}' holds the folders of its splits, {_join(by_class)}")
        return Layout(_with_test(by_class, notes), top.empty, notes)
    if top.path != root and parse_split_name(top.name) == SplitName("train", ()):
        notes[-1] = (
            f"'{top.path.parent}' holds {top.name}/ but no test/ folder, so test images are held out of {top.name}/"
        )
    else:
        _check_not_repeated(top)
        _check_not_numbered(top)
    _check_classes(top)
    return Layout({"train": top.paths}, top.empty, notes)


def _enter(folder: Folder, notes: list[str], known: Collection[str] = ()) -> Folder:
    """Enters a single folder around class folders, again and again; not one with a known class name."""
    while len(folder.classes) == 1 and folder.holds_classes and not folder.classes.keys() <= set(known):
        (inner,) = folder.classes.values()
        notes.append(
            f"'{folder.path}' holds a single folder with images; the classes are the folders in '{inner.path}'"
        )
        folder = inner
    return folder


def _find_splits(top: Folder, notes: list[str]) -> dict[str, Folder]:
    """Returns the folders of splits; none if the folders are classes."""
    named = {folder: name for folder in top.classes.values() if (name := parse_split_name(folder.name))}
    trains = [folder for folder, name in named.items() if name.split == "train"]
    families = ([folder for folder in named if _belong_together(folder, train)] for train in trains)
    family = next((family for family in families if len(family) > 1), [])
    others = [name for name, folder in top.classes.items() if folder not in family]
    if not family:
        _check_not_split(top, named, others)
        return {}
    splits: dict[str, Folder] = {}
    for folder in family:
        split = named[folder].split
        if not folder.classes and split != "train":
            notes.append(
                f"Left out '{folder.path}': its images are in no class folders, so their classes are not known"
            )
        elif split in splits:
            raise InputError(f"'{splits[split].path}' and '{folder.path}' are both the {split} split; keep one of them")
        else:
            splits[split] = folder
    if not splits["train"].classes:
        raise NoClassFolders(
            f"'{splits['train'].path}' has no class folders, only images; it must hold one folder of images per class. "
            "If a file lists the classes: --data.name list --data.train_list FILE"
        )
    if others:
        notes.append(f"Skipped folders in '{top.path}' other than those of the splits: {_join(others)}")
    return splits


def _belong_together(folder: Folder, train: Folder) -> bool:
    """Whether two folders with names of splits are of one data set."""
    same_names = parse_split_name(folder.name)[1:] == parse_split_name(train.name)[1:]  # type: ignore[index]
    return same_names or not folder.classes.keys().isdisjoint(train.classes)


def _check_not_split(top: Folder, named: dict[Folder, SplitName], others: list[str]) -> None:
    """Refuses folders that are splits by name, without the folders that belong to them."""
    plain = [folder for folder, name in named.items() if not name.stem]
    trains = [folder for folder in plain if named[folder].split == "train"]
    if plain and not trains:
        raise InputError(
            f"'{top.path}' has {' and '.join(f'{folder.name}/' for folder in plain)} but no train/ folder; add one, or "
            "put one folder of images per class directly into data.root, which then holds out data.test_fraction for "
            "testing"
        )
    # A folder train/ with images and next to car/ and ship/ is a class.
    for train in trains:
        if train.classes and not train.has_own_images:
            rest = [name for name in others if name != train.name]
            raise InputError(
                f"'{train.path}' holds class folders, but is next to {_join(rest)}: if it is the training split, set "
                f"data.root to '{train.path}' or add a test/ folder; if it is a class, move its images out of "
                "their subfolders"
            )


def _layout_of_splits(found: dict[str, Folder], notes: list[str]) -> Layout:
    train = _enter(found["train"], notes)
    entered = {split: _enter(folder, notes, train.classes) for split, folder in found.items() if split != "train"}
    _check_classes(train)
    unusual = [f"'{folder.name}' is {split}" for split, folder in found.items() if folder.name.lower() != split]
    if unusual:
        notes.append(f"Splits by the names of the folders: {', '.join(unusual)}")
    splits = {"train": train.paths} | {split: folder.paths for split, folder in entered.items()}
    return Layout(_with_test(splits, notes), train.empty, notes)


def _with_test(splits: dict[str, dict[str, Path]], notes: list[str]) -> dict[str, dict[str, Path]]:
    """Makes val the test split if there is no other. Notes which images are tested on."""
    if "test" not in splits and "val" in splits:
        notes.append(VAL_IS_TEST)
        splits = {"train": splits["train"], "test": splits["val"]}
    elif "test" not in splits:
        notes.append("There is no test split with class folders, so test images are held out of the training images")
    return splits


def _splits_in_classes(top: Folder) -> dict[str, dict[str, Path]]:
    """Returns the splits of class folders such as cat/train, cat/test, dog/train, dog/test; otherwise nothing."""
    splits: dict[str, dict[str, Path]] = {}
    for name, folder in top.classes.items():
        for inner in folder.classes.values():
            parsed = parse_split_name(inner.name)
            if parsed is None or name in splits.get(parsed.split, {}):
                return {}
            splits.setdefault(parsed.split, {})[name] = inner.path
        if folder.has_own_images or not folder.classes:
            return {}
    return splits if splits.keys() > {"train"} else {}


def _check_not_repeated(top: Folder) -> None:
    """Refuses folders that hold the same folders, such as folds: either of both levels could be the classes."""
    nested = [folder for folder in top.classes.values() if folder.classes and not folder.has_own_images]
    if repeated := _repeated([folder.classes.keys() for folder in nested]):
        raise InputError(
            f"{_join([folder.name for folder in nested])} in '{top.path}' hold the same folders: {_join(repeated)}. If "
            "these are the classes, put them into folders train/ and test/. If the outer folders are the classes, put "
            "all of them into a folder train/"
        )


def _check_not_data_sets(top: Folder) -> None:
    """Refuses folders that hold splits with the same classes, such as fold_0/train/cat and fold_1/train/cat."""
    folders = list(top.classes.values())
    inner = [{name for split in folder.classes.values() for name in split.classes} for folder in folders]
    if repeated := _repeated(inner):
        raise InputError(
            f"{_join(top.classes)} in '{top.path}' hold splits with the same folders: {_join(repeated)}. If these are "
            f"the classes, set data.root to one of the outer folders, such as '{folders[0].path}'. If the outer "
            "folders are the classes, take the images out of the inner ones"
        )


def _repeated(groups: Iterable[Collection[str]]) -> list[str]:
    """Returns the names that occur in several groups, if these are several and most of all names."""
    counts = Counter(name for group in groups for name in group)
    repeated = [name for name, number in sorted(counts.items()) if number > 1]
    return repeated if len(repeated) > 1 and 2 * sum(counts[name] for name in repeated) > counts.total() else []


def _check_not_numbered(top: Folder) -> None:
    """Refuses folders such as images_part_1 and images_part_2: numbered parts of one set of images."""
    stems = {re.sub(r"\d+", "", name).casefold() for name in top.classes}
    if len(top.classes) > 1 and len(stems) == 1 and (words := _PART.findall(stems.pop())):
        raise NoClassFolders(
            f"{_join(top.classes)} in '{top.path}' are numbered {words[-1]}s by their names, not classes; make one "
            "folder of images per class"
        )


def _check_classes(folder: Folder) -> None:
    """Refuses folders that are kinds of files by their names, and fewer than two folders."""
    names = list(folder.classes)
    if len(names) > 1 and all(re.sub(r"[\W_]", "", name).lower().removesuffix("s") in _KINDS for name in names):
        raise NoClassFolders(
            f"{_join(names)} in '{folder.path}' are kinds of files by their names, not classes; make one folder of "
            "images per class"
        )
    if len(names) < 2:
        found = f"has a single class folder, '{names[0]}'" if names else "has no class folders with images"
        others = find_images_below(folder.path).others.most_common()
        kinds = shortened_list([f"{number:,} {kind}" for kind, number in others], SHOWN)
        hint = f"; {HEIF_HINT}" if HEIF_SUFFIXES & dict(others).keys() else ""
        raise NoClassFolders(
            f"'{folder.path}' {found}; it must hold at least two folders, one for the images of each class"
            + (f". Files that are not read as images: {kinds}{hint}" if others else "")
        )


def _join(names: Collection[str]) -> str:
    return shortened_list([f"'{name}'" for name in names], SHOWN)
