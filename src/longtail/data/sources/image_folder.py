"""Data sets of image files with one folder per class. Decodes no image."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from longtail.config.schema import DataConfig
from longtail.data.image_io import SUFFIXES, is_image
from longtail.data.sources import register
from longtail.data.sources.class_names import describe_difference, find_similar, log_left_out
from longtail.data.sources.find_lists import find_lists
from longtail.data.sources.folder_layout import Layout, NoClassFolders, read_layout
from longtail.data.sources.image_files import find_images_below, is_printable, log_skipped_files
from longtail.data.sources.image_list import read_lists
from longtail.data.splits import DataSplits, ImageSplit, hold_out_test
from longtail.utils.errors import InputError, raise_all
from longtail.utils.format import pluralize, shortened_list

logger = logging.getLogger(__name__)


@register("folder")
def load(settings: DataConfig) -> DataSplits:
    """Loads ``data.root``, which holds one folder per class, or folders of splits with one folder per class each.

    If there are no class folders but a file such as metadata.csv or labels.csv, that file says the classes.

    See `read_layout` for the trees of folders that are understood. Without a test split, ``round(data.test_fraction *
    n)`` images of each class become the test split, chosen by ``data.subset_seed``: at least one of a class with two
    images, and none of a class with one.

    Classes are sorted by name. Class folders may have subfolders. Hidden files and folders are skipped.

    Raises:
        InputError: there are no such folders, or their classes differ.
    """
    root = Path(settings.root)
    if not root.is_dir():
        raise InputError(f"data.root '{root}' is not a folder; it must hold one folder of images per class")
    try:
        layout = read_layout(root)
    except NoClassFolders:
        if not (lists := find_lists(root)):
            raise
        logger.info("The images are not in class folders. Their classes are read from %s", ", ".join(lists.values()))
        return read_lists(settings, lists["train"], lists.get("val"), lists.get("test"))
    for note in layout.notes:
        logger.info(note)
    names = _class_names(layout)
    problems: list[str] = []
    _report_empty(layout.empty, settings.empty_classes, problems)
    splits = {
        split: _read_split(split, layout.splits[split], layout.splits["train"], names, problems)
        for split in ("train", "val", "test")
        if split in layout.splits
    }
    raise_all(problems)
    if "test" not in splits:
        return hold_out_test(splits["train"], names, settings.test_fraction, settings.subset_seed, f"'{root}'")
    return DataSplits(splits["train"], splits.get("val"), splits["test"], names)


def _class_names(layout: Layout) -> tuple[str, ...]:
    folders = layout.splits["train"]
    names = sorted(folders)
    unprintable = [str(folders[name]) for name in names if not is_printable(name)]
    raise_all([f"{path!a}: the name is not UTF-8 or holds control characters; rename it" for path in unprintable])
    return tuple(names)


def _report_empty(empty: Sequence[Path], empty_classes: str, problems: list[str]) -> None:
    if empty_classes == "error":
        suffixes = ", ".join(sorted(SUFFIXES))
        problems.extend(f"'{folder}' holds no images ({suffixes}); data.empty_classes is error" for folder in empty)
    elif empty:
        folders = pluralize(len(empty), "folder")
        names = shortened_list([f"'{folder}'" for folder in empty], 5)
        logger.info("Left out %s without images: %s", folders, names)


def _read_split(
    split: str, folders: Mapping[str, Path], known: Mapping[str, Path], names: Sequence[str], problems: list[str]
) -> ImageSplit:
    """Returns the images of a split, class by class. Leaves out classes without training images."""
    unknown = {name: folder for name, folder in folders.items() if name not in known}
    for name, folder in list(unknown.items()):
        if similar := find_similar(name, names):
            del unknown[name]
            problems.append(
                f"'{folder}' and the training class '{known[similar]}' differ only "
                f"{describe_difference(name, similar)}; rename one of them"
            )
    paths: list[Path] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for label, name in enumerate(names):
        images, more = find_images_below(folders[name]) if name in folders else ([], Counter[str]())
        others += more
        paths.extend(images)
        labels.extend([label] * len(images))
    if unknown:
        _report_unknown(split, unknown, bool(paths), problems)
    for parent in sorted({folder.parent for folder in folders.values()}):
        log_skipped_files(parent, others)
        others.clear()
        if loose := sum(is_image(entry) and entry.is_file() for entry in parent.iterdir()):
            logger.info("Skipped %s in '%s' that are in no class folder", pluralize(loose, "image"), parent)
    return ImageSplit(np.array(labels, dtype=np.int64), paths=np.array(paths, dtype=object))


def _report_unknown(split: str, unknown: Mapping[str, Path], has_known: bool, problems: list[str]) -> None:
    """Reports the classes of a split that have no training images."""
    if not has_known:
        absent = shortened_list([f"'{name}'" for name in unknown], 5)
        problems.append(f"the {split} split has no class of the training split, only {absent}; rename them")
        return
    log_left_out(split, unknown, sum(len(find_images_below(folder).images) for folder in unknown.values()))
