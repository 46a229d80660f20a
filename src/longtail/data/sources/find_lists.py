"""Finds lists in folders of images, such as metadata.csv of Hugging Face and labels.csv of Kaggle."""

import re
from collections.abc import Iterator
from pathlib import Path

from longtail.data.sources.image_files import is_hidden
from longtail.data.sources.split_names import parse_split_name

WORDS = ("metadata", "labels", "label", "train", "annotations")
"""Words in the names of lists, the preferred first"""

SUFFIXES = (".csv", ".tsv")


def find_lists(root: Path) -> dict[str, str]:
    """Returns the lists in a folder by split, as paths from it: none, one for train, or one for each split.

    A list is in the folder or in a folder in it. Or folders of splits each hold a list metadata.csv.
    """
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not is_hidden(entry.name))
    by_split = {
        name.split: folder / "metadata.csv"
        for folder in folders
        if (name := parse_split_name(folder.name)) and (folder / "metadata.csv").is_file()
    }
    if "train" in by_split:
        return {split: file.relative_to(root).as_posix() for split, file in by_split.items()}
    file = next((file for folder in (root, *folders) for file in _lists_in(folder)), None)
    return {} if file is None else {"train": file.relative_to(root).as_posix()}


def _lists_in(folder: Path) -> Iterator[Path]:
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not is_hidden(file.name))
    spaced = {file: re.sub(r"(?<=[a-z])(?=[A-Z])", " ", file.stem).lower() for file in files}
    for word in WORDS:
        yield from (file for file, name in spaced.items() if word in re.findall(r"[a-z]+", name))
