"""Data sets of image files with one folder per class. Decodes no image."""

import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
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

SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Folder name, in any case -> split"""


@register("folder")
def load(settings: DataConfig) -> DataSplits:
    """Loads ``data.root``, which holds train/, test/ and possibly val/, each with one folder per class.

    Or it holds the class folders directly. Then ``round(data.test_fraction * n)`` images of each class become the test
    split, chosen by ``data.subset_seed``: at least one of a class with two images, and none of a class with one.

    Classes are sorted by name. Class folders may have subfolders. Hidden files and folders are skipped.

    Raises:
        InputError: there are no such folders, or their classes differ.
    """
    root = Path(settings.root)
    if not root.is_dir():
        raise InputError(f"data.root '{root}' is not a folder; it must hold one folder of images per class")
    folders = _split_folders(root)
    if not folders:
        return _hold_out_test(root, settings.test_fraction, settings.subset_seed)
    names = _class_names(folders["train"])
    problems: list[str] = []
    in_order = [split for split in ("train", "val", "test") if split in folders]
    splits = {split: _read_classes(folders[split], names, split == "train", problems) for split in in_order}
    raise_all(problems)
    return DataSplits(splits["train"], splits.get("val"), splits["test"], tuple(names))


def _split_folders(root: Path) -> dict[str, Path]:
    """Returns the folders of the splits; nothing if root holds class folders."""
    folders: dict[str, Path] = {}
    others = []
    for name in _subfolders(root):
        split = SPLIT_FOLDERS.get(name.lower())
        if split is None:
            others.append(name)
        elif split in folders:
            raise InputError(f"'{folders[split]}' and '{root / name}' are both the {split} split; keep one of them")
        else:
            folders[split] = root / name
    if "train" in folders and "test" in folders:
        if others:
            logger.info("Skipped folders in '%s' other than train/, val/ and test/: %s", root, ", ".join(others))
        return folders
    if not folders or (others and set(folders) == {"train"}):  # next to car/ and ship/, train/ is a class
        return {}
    missing = "test" if "train" in folders else "train"
    found = " and ".join(f"{folder.name}/" for folder in folders.values())
    raise InputError(
        f"'{root}' has {found} but no {missing}/ folder; add one, or put one folder of images per class directly into "
        "data.root, which then holds out data.test_fraction for testing"
    )


def _hold_out_test(root: Path, fraction: float, seed: int) -> DataSplits:
    names, problems = _class_names(root), list[str]()
    images = _read_classes(root, names, True, problems)
    raise_all(problems)
    if fraction == 0:
        raise InputError(f"data.test_fraction is 0, but '{root}' has no test/ folder; set it above 0")
    counts = np.bincount(images.labels).tolist()
    # Unlike `hold_out`, this takes at least one test image of every class with two images.
    held = [min(max(round(fraction * n), 1), n - 1) for n in counts]
    if not any(held):
        raise InputError(f"each class in '{root}' has a single image, so none is left for testing; add images")
    test = np.sort(choose_subset(images.labels, held, seed))
    train = np.setdiff1d(np.arange(len(images)), test)
    return DataSplits(images.take(train), None, images.take(test), tuple(names))


def _class_names(folder: Path) -> list[str]:
    names = _subfolders(folder)
    unprintable = [str(folder / name) for name in names if not is_printable(name)]
    raise_all([f"{path!a}: the name is not UTF-8 or holds control characters; rename it" for path in unprintable])
    if len(names) < 2:
        found = f"has a single class folder, '{names[0]}'" if names else "has no class folders"
        raise InputError(f"'{folder}' {found}; it must hold at least two folders, one for the images of each class")
    return names


def _read_classes(folder: Path, names: Sequence[str], all_classes: bool, problems: list[str]) -> ImageSplit:
    """Returns the images of a split, class by class. Only the training split must have images of all classes."""
    similar = {unicodedata.normalize("NFC", name) for name in names}
    for name in sorted(set(_subfolders(folder)) - set(names)):
        hint = "each class needs training images"
        if unicodedata.normalize("NFC", name) in similar:
            hint = "the class that looks the same is written in another Unicode form (NFC or NFD); rename one of them"
        problems.append(f"'{folder / name}' is not a class of the training split; {hint}")
    paths: list[Path] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, name in enumerate(names):
        images, more = find_images_below(folder / name)
        others += more
        if all_classes and not images:
            problems.append(f"'{folder / name}' holds no images ({', '.join(sorted(SUFFIXES))})")
        paths.extend(images)
        labels.extend([label] * len(images))
    if not paths and not all_classes:
        problems.append(f"'{folder}' holds no images in class folders; add some, or remove the folder")
    log_skipped_files(folder, others)
    if loose := sum(is_image(entry) and entry.is_file() for entry in folder.iterdir()):
        logger.info("Skipped %s in '%s' that are in no class folder", pluralize(loose, "image"), folder)
    return ImageSplit(np.array(labels, dtype=np.int64), paths=as_paths(paths))


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
