"""Answers to images, and how files are classified; needs no PyTorch."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtail.utils.errors import InputError, raise_all

Pixels = NDArray[np.uint8]

CPU_BATCH_PIXELS = 400_000
"""Pixels of a batch at most: then the outputs of a layer stay in the caches of a CPU"""


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


def best_batch_size(image_size: int, is_on_cpu: bool) -> int:
    """Returns how many images are classified at once: 64, or on a CPU as many as are fastest."""
    return max(1, min(64, CPU_BATCH_PIXELS // image_size**2)) if is_on_cpu else 64


def check_min(**numbers: tuple[int | None, int]) -> None:
    """Checks that numbers, if given, are not below their minimum: ``check_min(top=(top, 1))``.

    Raises:
        InputError: one is.
    """
    for name, (value, minimum) in numbers.items():
        if value is not None and value < minimum:
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
        threads: that read; 0: as many as the number of processors suggests.
        ahead: read the next batch while one is classified. It does not pay if the same processors do both.

    Raises:
        InputError: at the end, a line for each file that could not be read.
    """
    problems: list[str] = []
    batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]

    def read_or_error(path: Path) -> Pixels | InputError:
        try:
            return read(path)
        except InputError as error:
            return error

    for batch, contents in zip(batches, _read(batches, read_or_error, threads, ahead), strict=True):
        problems += [str(content) for content in contents if isinstance(content, InputError)]
        images = [
            (path, pixels) for path, pixels in zip(batch, contents, strict=True) if isinstance(pixels, np.ndarray)
        ]
        answers = classify([pixels for _, pixels in images]) if images else []
        for (path, _), (first, *others) in zip(images, answers, strict=True):
            yield Prediction(path, *first, tuple(others))
    raise_all(problems)


def _read(
    batches: list[Sequence[Path]], read: Callable[[Path], Pixels | InputError], threads: int, ahead: bool
) -> Iterator[list[Pixels | InputError]]:
    pool = ThreadPoolExecutor(threads or None)
    try:
        waiting: list[list[Future[Pixels | InputError]]] = []
        for batch in batches:
            waiting.append([pool.submit(read, path) for path in batch])
            if len(waiting) > ahead:
                yield [future.result() for future in waiting.pop(0)]
        for futures in waiting:
            yield [future.result() for future in futures]
    finally:
        pool.shutdown(cancel_futures=True)
