"""Answers to images, and how files are classified; needs no PyTorch."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtail.utils.errors import InputError, raise_all

Pixels = NDArray[np.uint8]

CPU_BATCH_PIXELS = 200_000
"""Pixels of a batch for each processor at most: then the outputs of a layer stay in its caches; measured with two"""

FILES_AT_ONCE = 64
"""Files that threads read before they are classified"""


class ClassProbability(NamedTuple):
    """A class and its probability."""

    class_name: str
    probability: float


class Prediction(NamedTuple):
    """The most probable class of an image."""

    path: Path
    class_name: str
    probability: float
    others: tuple[ClassProbability, ...] = ()
    """The next most probable classes, as many as were asked for"""


def pick_batch_size(batch_size: int | None, image_size: int, processors: int | None) -> int:
    """Returns how many images are classified at once.

    Args:
        batch_size: that is asked for; None: what is fastest.
        image_size: height and width, pixels.
        processors: of a CPU; None: another device computes.

    Raises:
        InputError: ``batch_size`` is below 1.
    """
    if batch_size is not None:
        check_min(batch_size=(batch_size, 1))
        return batch_size
    return 64 if processors is None else max(1, min(64, processors * CPU_BATCH_PIXELS // image_size**2))


def check_min(**numbers: tuple[int, int]) -> None:
    """Checks that numbers are not below their minimum: ``check_min(top=(top, 1))``.

    Raises:
        InputError: one is.
    """
    for name, (value, minimum) in numbers.items():
        if value < minimum:
            raise InputError(f"{name} is {value}; it must be at least {minimum}")


def classify_files(
    paths: Sequence[Path],
    read: Callable[[Path], Pixels],
    classify: Callable[[list[Pixels]], list[list[ClassProbability]]],
    *,
    batch_size: int,
    threads: int,
    ahead: bool,
) -> Iterator[Prediction]:
    """Classifies image files in order.

    They are read in threads. Processes would have to be started and to send pixels, and decoding and resizing release
    Python's lock.

    Args:
        paths: image files.
        read: a file to its pixels; runs in threads.
        classify: the pixels of a batch to the most probable classes of each image.
        batch_size: images in a batch.
        threads: that read.
        ahead: read further files while images are classified. That pays if it does not take the same processors.

    Raises:
        InputError: at the end, a line for each file that could not be read.
    """
    problems: list[str] = []

    def read_or_error(path: Path) -> Pixels | InputError:
        try:
            return read(path)
        except InputError as error:
            return error

    group_size = max(1, FILES_AT_ONCE // batch_size) * batch_size
    for group, contents in _groups(paths, read_or_error, group_size, threads, ahead):
        problems += [str(content) for content in contents if isinstance(content, InputError)]
        images = [
            (path, content) for path, content in zip(group, contents, strict=True) if isinstance(content, np.ndarray)
        ]
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            answers = classify([pixels for _, pixels in batch])
            for (path, _), (first, *others) in zip(batch, answers, strict=True):
                yield Prediction(path, *first, tuple(others))
    raise_all(problems)


def _groups(
    paths: Sequence[Path], read: Callable[[Path], Pixels | InputError], size: int, threads: int, ahead: bool
) -> Iterator[tuple[Sequence[Path], list[Pixels | InputError]]]:
    """Yields files and their contents, some at a time."""
    groups = [paths[start : start + size] for start in range(0, len(paths), size)]
    pool = ThreadPoolExecutor(threads)

    def start(number: int) -> list[Future[Pixels | InputError]]:
        return [pool.submit(read, path) for group in groups[number : number + 1] for path in group]

    try:
        following = start(0)
        for number, group in enumerate(groups, start=1):
            contents = [future.result() for future in following]
            following = start(number) if ahead else []
            yield group, contents
            following = following if ahead else start(number)
    finally:
        pool.shutdown(cancel_futures=True)
