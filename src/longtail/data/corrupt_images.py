"""Picture files that do not decode: found before training, all at once, and left out."""

import os
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from longtail.data.image_io import problem
from longtail.data.splits import DataSplits, ImageSplit
from longtail.utils.errors import InputError, one_line, raise_all

SKIPPED_FILE = "skipped_images.txt"
"""In a run folder: what was left out, a line each: path from data.root, a tab, why."""

AT_A_TIME = 1024
"""Pictures that wait for a thread; all of a million would take a gigabyte, and could not be interrupted."""


class CorruptImage(NamedTuple):
    """A picture that does not decode."""

    path: str
    """From data.root"""
    reason: str


def picture_files(dataset: DataSplits) -> list[Path]:
    """Each picture file of any part once, in order; none where pixels lie decoded."""
    parts = [part.paths for part in (dataset.train, dataset.val, dataset.test) if part is not None]
    return list(dict.fromkeys(path for paths in parts if paths is not None for path in paths))


def examine(paths: Sequence[Path], root: Path) -> Iterator[CorruptImage | None]:
    """Decodes pictures fully, in threads; yields for each, in order, what is wrong with it, or None."""

    def look(path: Path) -> CorruptImage | None:
        reason = problem(path)
        return None if reason is None else CorruptImage(_relative(path, root), reason)

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), AT_A_TIME):
            yield from pool.map(look, paths[start : start + AT_A_TIME])


def without(dataset: DataSplits, bad: Collection[CorruptImage], root: Path) -> DataSplits:
    """The data set without these pictures; the other ones stay in their parts, in order.

    Raises:
        InputError: a class is left without training images, or a part without any.
    """
    if not bad:
        return dataset
    left_out = {root / path for path, _ in bad}
    parts = [None if part is None else _without(part, left_out) for part in (dataset.train, dataset.val, dataset.test)]
    train, val, test = parts
    assert train is not None
    assert test is not None
    smaller = replace(dataset, train=train, val=val, test=test)
    problems = [
        f"class '{name}' has no training image that decodes (of {before:,}); mend some, or remove "
        f"the class. {_first_of(dataset.train, label, bad, root)}"
        for label, (name, before, now) in enumerate(
            zip(dataset.class_names, dataset.class_counts, smaller.class_counts, strict=True)
        )
        if before and not now
    ]
    for name, part in (("validation", val), ("test", test)):
        if part is not None and not len(part):
            problems.append(f"no {name} image decodes; mend some of them")
    raise_all(problems)
    return smaller


def check_share(bad: Sequence[CorruptImage], num_images: int, most: float) -> None:
    """Refuses to leave out more than a share of the images.

    Raises:
        InputError: there are more; names the first ones.
    """
    if len(bad) > most * num_images:
        first = (
            f"{len(bad):,} of {num_images:,} images do not decode ({len(bad) / num_images:.1%}), and "
            f"data.max_corrupt_images allows {most:.1%}; mend or remove them:"
        )
        raise_all([first, *(f"{path}: {reason}" for path, reason in bad)])


def to_text(bad: Sequence[CorruptImage]) -> bytes:
    """The contents of `SKIPPED_FILE`."""
    lines = [
        os.fsencode(_escaped(path)) + b"\t" + reason.encode("utf-8", "backslashreplace") + b"\n" for path, reason in bad
    ]
    return b"".join(lines)


def from_text(content: bytes, where: Path) -> list[CorruptImage]:
    """What `to_text` wrote into the file ``where``.

    Raises:
        InputError: a line has no tab; it is named.
    """
    bad = []
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        path, tab, reason = line.rpartition(b"\t")
        if not tab:
            raise InputError(
                f"{where}:{number}: damaged; a line is the path of an image, a tab, and why it was skipped"
            )
        bad.append(CorruptImage(_unescaped(os.fsdecode(path)), reason.decode("utf-8", "replace")))
    if content and not content.endswith(b"\n"):
        raise InputError(f"{where}: damaged; its last line is not complete")
    return bad


def _without(split: ImageSplit, left_out: Collection[Path]) -> ImageSplit:
    if split.paths is None:
        return split
    return split.take(np.flatnonzero([path not in left_out for path in split.paths]))


def _first_of(split: ImageSplit, label: int, bad: Collection[CorruptImage], root: Path) -> str:
    assert split.paths is not None
    reasons = {root / path: f"{path}: {reason}" for path, reason in bad}
    return one_line(next(reasons[path] for path in split.paths[split.labels == label] if path in reasons))


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _escaped(path: str) -> str:
    return path.replace("\\", "\\\\").replace("\n", "\\n")


def _unescaped(text: str) -> str:
    return "\\".join(part.replace("\\n", "\n") for part in text.split("\\\\"))
