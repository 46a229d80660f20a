"""Images in, classes and probabilities out, whatever computes them; needs no PyTorch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.data.central_crop import crop_centre, resize_shorter
from longtail.data.find_images import find_images
from longtail.data.image_io import copied_rgb, decode
from longtail.runtime.process import default_workers, num_processors
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


class ImageForm(Protocol):
    """What the metadata of a model say about its images."""

    @property
    def image_size(self) -> int:
        """Height and width of the network's input, pixels."""

    @property
    def resize(self) -> int:
        """Shorter side before the central crop, pixels."""

    @property
    def interpolation(self) -> str:
        """Of the resize: bilinear or bicubic."""


class ImageClassifier(ABC):
    """What all predictors share: images are decoded, turned, resized and grouped in the same way.

    Args:
        form: the model's metadata.
        on_cpu: the model runs on the processors that also decode.
        views: of each image that the model sees.
        side: height and width of the images that views are made of, pixels; None: the network's.
    """

    def __init__(self, form: ImageForm, *, on_cpu: bool, views: int = 1, side: int | None = None):
        self._form, self._on_cpu, self._num_views, self._side = form, on_cpu, views, side or form.image_size

    def classify(self, images: Sequence[Image.Image], top: int = 1) -> list[list[ClassProbability]]:
        """Returns the most probable classes of each image, the most probable first. All images form one batch.

        Args:
            images: Pillow images of any mode; they are not changed. Their sizes have the limits of image files.
            top: number of classes.

        Raises:
            InputError: ``top`` is below 1; or an image has no pixels, or so many that they would exhaust memory.
            Exception: Pillow's error if an image cannot be loaded.
        """
        check_min(top=(top, 1))
        if not images:
            return []
        return self._top_classes([self._pixels(image) for image in copied_rgb(images)], top)

    def predict(
        self,
        images: str | Path | Sequence[str | Path],
        *,
        batch_size: int | None = None,
        top: int = 1,
        workers: int = 0,
    ) -> Iterator[Prediction]:
        """Classifies image files in order: see `longtail.predict`."""
        check_min(top=(top, 1), workers=(workers, 0))
        batch_size = pick_batch_size(batch_size, self._form.image_size, num_processors() if self._on_cpu else None)
        return classify_files(
            find_images(images),
            lambda path: self._pixels(decode(path)),
            lambda pixels: self._top_classes(pixels, top),
            batch_size=max(1, batch_size // self._num_views),
            threads=workers or default_workers(),
            ahead=not self._on_cpu,
        )

    def _pixels(self, image: Image.Image) -> Pixels:
        resized = resize_shorter(image, self._form.resize, self._form.interpolation)
        return np.asarray(crop_centre(resized, self._side))

    @abstractmethod
    def _top_classes(self, pixels: Sequence[Pixels], top: int) -> list[list[ClassProbability]]:
        """Returns the most probable classes of each image of a batch, or all if there are fewer than ``top``."""


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
            predictions = classify([pixels for _, pixels in batch])
            for (path, _), (first, *others) in zip(batch, predictions, strict=True):
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
