"""Corrupt images: finds the image files that do not decode before training, and leaves them out."""

import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

import numpy as np

from longtail.data.image_io import CorruptImageError, problem
from longtail.data.splits import DataSplits, ImageSplit
from longtail.utils.errors import InputError, one_line, raise_all
from longtail.utils.threads import map_in_threads

SKIPPED_FILE = "skipped_images.txt"
"""File of a run folder with one corrupt image a line: path from data.root, a tab, and the reason"""

MAX_LINES = 20
"""Lines of a message, at most"""

SKIP_HINT = "with --data.on_corrupt_image skip, a new run leaves out damaged training images"


class CorruptImage(NamedTuple):
    """An image file that does not decode."""

    path: str
    """From data.root"""
    reason: str


def image_files(dataset: DataSplits) -> list[Path]:
    """Returns the image files of all splits, each once; none if the images are decoded."""
    splits = [split.paths for split in dataset.splits.values() if split.paths is not None]
    return list(dict.fromkeys(path for paths in splits for path in paths))


def examine(paths: Sequence[Path], root: Path, header_only: bool = False) -> Iterator[CorruptImage | None]:
    """Decodes images in threads, or reads their headers. Yields for each of them, in order, what is wrong, or None."""

    def check(path: Path) -> CorruptImage | None:
        reason = problem(path, header_only)
        relative = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
        return None if reason is None else CorruptImage(relative, reason)

    return map_in_threads(check, paths)


def without(dataset: DataSplits, corrupt: Collection[CorruptImage], root: Path) -> DataSplits:
    """Returns the data set without these images. The others keep their splits and their order.

    Raises:
        InputError: a class is left without training images, or a split without images.
    """
    paths = dataset.train.paths
    if not corrupt or paths is None:
        return dataset
    reasons = {root / image.path: one_line(f"{image.path}: {image.reason}") for image in corrupt}

    def remaining(split: ImageSplit) -> ImageSplit:
        assert split.paths is not None
        return split.take(np.flatnonzero([path not in reasons for path in split.paths]))

    val = None if dataset.val is None else remaining(dataset.val)
    smaller = replace(dataset, train=remaining(dataset.train), val=val, test=remaining(dataset.test))
    problems = []
    for label, (before, after) in enumerate(zip(dataset.class_counts, smaller.class_counts, strict=True)):
        if before and not after:
            first = next(reasons[path] for path in paths[dataset.train.labels == label] if path in reasons)
            problems.append(
                f"none of the {before:,} training images of '{dataset.class_names[label]}' decodes; replace some, or "
                f"remove the class. {first}"
            )
    empty = [name for name, split in smaller.splits.items() if name != "train" and not len(split)]
    problems += [f"no image of the {name} split decodes; replace some of them" for name in empty]
    raise_all(problems)
    return smaller


def check_training_images(dataset: DataSplits, corrupt: Sequence[CorruptImage], root: Path) -> None:
    """Checks that no training image is corrupt.

    Raises:
        InputError: lists the first corrupt images of all splits, and says how to leave them out; a temporary file lists
            all if they are many.
    """
    assert dataset.train.paths is not None
    training = set(dataset.train.paths)
    if not any(root / image.path in training for image in corrupt):
        return
    lines = [str(CorruptImageError(root / image.path, image.reason)) for image in corrupt]
    if len(lines) > MAX_LINES:
        with NamedTemporaryFile("wb", prefix="longtail-corrupt-images-", suffix=".txt", delete=False) as file:
            file.write(to_text(corrupt))
        lines[MAX_LINES - 1 :] = [f"and {len(lines) - MAX_LINES + 1:,} more; '{file.name}' lists all of them"]
    raise_all([*lines[:-1], f"{lines[-1]}; {SKIP_HINT}"])


def check_share(corrupt: Sequence[CorruptImage], num_images: int, limit: float) -> None:
    """Checks that at most a share of the images is corrupt.

    Raises:
        InputError: more are corrupt; lists the first ones.
    """
    if len(corrupt) > limit * num_images:
        first = (
            f"{len(corrupt):,} of {num_images:,} images do not decode ({len(corrupt) / num_images:.1%}), but "
            f"data.max_corrupt_images allows {limit:.1%}; replace or remove them:"
        )
        raise_all([first, *(f"{path}: {reason}" for path, reason in corrupt)])


def to_text(corrupt: Sequence[CorruptImage]) -> bytes:
    """Returns the contents of `SKIPPED_FILE`."""
    return b"".join(
        os.fsencode(path.replace("\\", "\\\\").replace("\n", "\\n") + "\t")
        + reason.encode("utf-8", "backslashreplace")
        + b"\n"
        for path, reason in corrupt
    )


def from_text(content: bytes, file: Path) -> list[CorruptImage]:
    """Reads the output of `to_text`.

    Raises:
        InputError: ``content`` is damaged; names ``file``.
    """
    *lines, rest = content.split(b"\n")
    if rest or not all(b"\t" in line for line in lines):
        raise InputError(f"{file}: damaged; each line must be the path of an image, a tab and a reason")
    corrupt = []
    for line in lines:
        path, _, reason = line.rpartition(b"\t")
        unescaped = "\\".join(piece.replace("\\n", "\n") for piece in os.fsdecode(path).split("\\\\"))
        corrupt.append(CorruptImage(unescaped, reason.decode("utf-8", "replace")))
    return corrupt
