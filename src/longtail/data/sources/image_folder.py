"""Data sets of image files with one folder per class. Decodes no image."""

import logging
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

from longtail.config.schema import DataConfig
from longtail.data.image_io import SUFFIXES, is_image
from longtail.data.imbalance import choose_subset
from longtail.data.sources import register
from longtail.data.sources.image_files import find_images_below, is_printable, log_skipped_files
from longtail.data.splits import DataSplits, ImageSplit, as_paths
from longtail.utils.errors import InputError, raise_all
from longtail.utils.format import pluralize

logger = logging.getLogger(__name__)

PART_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
"""Names, in small or capital letters, of the folders that hold a part of a data set instead of a class."""


@register("folder")
def load(settings: DataConfig) -> DataSplits:
    return folder(Path(settings.root), settings.test_fraction, settings.subset_seed)


def folder(root: Path, test_fraction: float, seed: int) -> DataSplits:
    """Reads a folder of pictures, sorted by class name; pictures may lie deeper, what is hidden is left out.

    ``root`` holds train/ and test/, and may hold val/, each with one folder per class. Or it holds one folder per
    class itself; then ``round(test_fraction * n)`` images of each class are held out for testing, chosen by ``seed``:
    at least one where the class has two, and none where it has one.

    Raises:
        InputError: there are no such folders, or their classes do not fit together.
    """
    if not root.is_dir():
        raise InputError(f"data.root '{root}' is not a folder; it must hold one folder of pictures per class")
    parts = _part_folders(root)
    if not parts:
        return _without_parts(root, test_fraction, seed)
    problems: list[str] = []
    names = _class_folders(parts["train"])
    splits = {
        part: _read_classes(parts[part], names, part == "train", problems) for part in PART_FOLDERS if part in parts
    }
    raise_all(problems)
    return DataSplits(splits["train"], splits.get("val"), splits["test"], tuple(names))


def _part_folders(root: Path) -> dict[str, Path]:
    """The folders of the parts, {"train": ..., "test": ...} and maybe "val"; empty where root holds classes instead."""
    subfolders = _subfolders(root)
    parts: dict[str, Path] = {}
    others = []
    for name in subfolders:
        part = next((part for part, names in PART_FOLDERS.items() if name.lower() in names), None)
        if part is None:
            others.append(name)
        elif part in parts:
            raise InputError(f"'{parts[part]}' and '{root / name}' are both the {part} part; keep one of them")
        else:
            parts[part] = root / name
    if "train" in parts and "test" in parts:
        if others:
            logger.info("'%s': left out, beside train/ and test/: %s", root, ", ".join(others))
        return parts
    # Next to car and ship, train is a class.
    if not parts or (others and set(parts) == {"train"}):
        return {}
    missing = "train" if "train" not in parts else "test"
    found = " and ".join(f"{where.name}/" for where in parts.values())
    raise InputError(
        f"'{root}' has {found} but no {missing}/ folder; add one, or put all pictures into one folder per class "
        "directly below data.root, of which data.test_fraction is held out"
    )


def _without_parts(root: Path, test_fraction: float, seed: int) -> DataSplits:
    names = _class_folders(root)
    problems: list[str] = []
    everything = _read_classes(root, names, True, problems)
    raise_all(problems)
    if test_fraction == 0:
        raise InputError(f"data.test_fraction is 0 and '{root}' has no test/ folder; it must be above 0")
    counts = np.bincount(everything.labels).tolist()
    # As hold_out, but every class that can spare an image is tested.
    held = [min(max(round(test_fraction * n), 1), n - 1) for n in counts]
    if not any(held):
        raise InputError(f"each class in '{root}' has a single picture, so none is left for testing; add pictures")
    test = np.sort(choose_subset(everything.labels, held, seed))
    train = np.setdiff1d(np.arange(len(everything)), test)
    return DataSplits(everything.take(train), None, everything.take(test), tuple(names))


def _class_folders(where: Path) -> list[str]:
    """Names of the classes, sorted."""
    names = _subfolders(where)
    raise_all(
        [
            f"{str(where / name)!a}: a class cannot be called like this folder, which is not UTF-8 or holds control "
            "characters; rename it"
            for name in names
            if not is_printable(name)
        ]
    )
    if not names:
        raise InputError(f"'{where}' has no folders of classes; it must hold one folder of pictures per class")
    if len(names) == 1:
        raise InputError(f"'{where}' has a single class folder, '{names[0]}'; at least two are needed")
    return names


def _read_classes(where: Path, names: list[str], all_needed: bool, problems: list[str]) -> ImageSplit:
    """The pictures of each class in ``where``, class by class; only training needs all classes."""
    spelled = {unicodedata.normalize("NFC", name) for name in names}
    for name in sorted(set(_subfolders(where)) - set(names)):
        right = "every class needs training images"
        if unicodedata.normalize("NFC", name) in spelled:
            right = "the one that looks the same has its accents written in another way (Unicode NFC or NFD); rename it"
        problems.append(f"'{where / name}' is no class of training; {right}")
    paths: list[Path] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, name in enumerate(names):
        found, left_out = find_images_below(where / name)
        others += left_out
        if all_needed and not found:
            kinds = ", ".join(sorted(SUFFIXES))
            problems.append(f"'{where / name}' holds no picture ({kinds}); each class needs at least one")
        paths.extend(found)
        labels.extend([label] * len(found))
    if not paths and not all_needed:
        problems.append(f"'{where}' holds no picture in any folder of a class; remove it or fill it")
    log_skipped_files(where, others)
    if loose := sum(is_image(entry) and entry.is_file() for entry in where.iterdir()):
        pictures = pluralize(loose, "picture is left out, in", "pictures are left out, in")
        logger.info("'%s': %s no folder of a class", where, pictures)
    return ImageSplit(np.array(labels, dtype=np.int64), paths=as_paths(paths))


def _subfolders(where: Path) -> list[str]:
    return sorted(entry.name for entry in where.iterdir() if entry.is_dir() and not entry.name.startswith("."))
