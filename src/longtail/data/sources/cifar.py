"""CIFAR-10 and CIFAR-100 in their official python layout, read without executing anything."""

import hashlib
import io
import logging
import lzma
import pickle
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from longtail.config.schema import DataConfig
from longtail.data.sources import register
from longtail.data.splits import DataSplits, ImageSplit
from longtail.utils.errors import InputError

logger = logging.getLogger(__name__)


MAX_UNPACKED = 2**30
"""Bytes; the official archives hold less than a fifth of that."""

SERVER_PATIENCE = 60.0
"""Seconds in which a server must say something"""


class Layout(NamedTuple):
    """Names and checksums of one of the two data sets."""

    folder: str
    archive: str
    train: dict[str, str]
    """file -> MD5"""
    test: dict[str, str]
    meta: str
    labels: str
    class_names: str
    num_classes: int


LAYOUTS = {
    "cifar10": Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta="batches.meta",
        labels="labels",
        class_names="label_names",
        num_classes=10,
    ),
    "cifar100": Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta="meta",
        labels="fine_labels",
        class_names="fine_label_names",
        num_classes=100,
    ),
}


@register("cifar10", num_classes=10, image_size=32)
@register("cifar100", num_classes=100, image_size=32)
def load(settings: DataConfig) -> DataSplits:
    return cifar(settings.name, Path(settings.root))  # type: ignore[arg-type]


def cifar(name: Literal["cifar10", "cifar100"], root: Path) -> DataSplits:
    """The 50,000 training and 10,000 test images, downloaded by torchvision where ``root`` lacks them.

    ``root`` holds the official folder (``cifar-100-python``), is it, or holds its archive (``.tar.gz``, ``.tar.xz``).

    Raises:
        InputError: the files are absent and cannot be downloaded, or are not CIFAR.
    """
    layout = LAYOUTS[name]
    folder = _find(name, layout, root)
    meta = _read(folder / layout.meta)
    names = _get(meta, layout.class_names, folder / layout.meta)
    if not isinstance(names, list) or len(names) != layout.num_classes or len(set(map(str, names))) != len(names):
        wanted = f"{layout.num_classes} different class names"
        raise InputError(f"{folder / layout.meta}: '{layout.class_names}' must be {wanted}")
    train, test = (_split(folder, layout, files) for files in (layout.train, layout.test))
    return DataSplits(train, None, test, tuple(map(str, names)))


def _find(name: str, layout: Layout, root: Path) -> Path:
    def found() -> Path | None:
        return next((f for f in (root / layout.folder, root) if (f / layout.meta).is_file()), None)

    if folder := found():
        return folder
    for archive in sorted(root.glob(f"{layout.archive}.*z*")):
        _unpack(archive, root, layout)
        if folder := found():
            return folder
    import torchvision.datasets

    official = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[name]
    try:
        logger.info("%s is not in %s: downloading it from %s", name, root, official.url)
        with tempfile.TemporaryDirectory() as temporary:
            with _patient_for(SERVER_PATIENCE):
                torchvision.datasets.utils.download_url(official.url, temporary, md5=official.tgz_md5)
            root.mkdir(parents=True, exist_ok=True)
            _unpack(Path(temporary, official.filename), root, layout)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{name} is not in '{root}' and could not be downloaded ({str(error).splitlines()[0]}): put the folder "
            f"{layout.folder}/ with {', '.join([*layout.train, *layout.test, layout.meta])}, or the archive "
            f"{layout.archive}.gz, into '{root}' (data.root)"
        ) from error
    folder = found()
    assert folder, "the official archive holds the official folder"
    return folder


@contextmanager
def _patient_for(seconds: float) -> Iterator[None]:
    """Within it, connections are given up when nothing has come for so long; torchvision's wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _unpack(archive: Path, root: Path, layout: Layout) -> None:
    """Unpacks the data set's folder into ``root``: all of it or nothing."""
    try:
        with tempfile.TemporaryDirectory(dir=root) as temporary, tarfile.open(archive) as tar:
            if sum(member.size for member in tar) > MAX_UNPACKED:
                raise tarfile.TarError("it holds more than a data set of this kind")
            tar.extractall(temporary, filter="data")
            Path(temporary, layout.folder).rename(root / layout.folder)
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise InputError(f"{archive}: cannot be unpacked into {layout.folder}/ ({error})") from error


def _split(folder: Path, layout: Layout, files: dict[str, str]) -> ImageSplit:
    pixels, labels = [], []
    for file, checksum in files.items():
        path = folder / file
        batch = _read(path, checksum)
        data = np.asarray(_get(batch, "data", path))
        own = _labels(batch, layout, path)
        if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * 32 * 32 or own.shape != data.shape[:1]:
            raise InputError(f"{path}: expected uint8 images of shape (n, 3072) and n labels, found {data.shape}")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(own)
    return ImageSplit(np.concatenate(labels), np.ascontiguousarray(np.concatenate(pixels)))


def _labels(batch: dict[str, Any], layout: Layout, path: Path) -> NDArray[np.int64]:
    listed = _get(batch, layout.labels, path)
    try:
        labels = np.asarray(listed)
    except ValueError:  # lists of different lengths inside
        labels = np.empty(0)
    if labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0 or labels.max() >= layout.num_classes:
        raise InputError(f"{path}: labels must be whole numbers from 0 to {layout.num_classes - 1}")
    return labels.astype(np.int64)


def _get(batch: dict[str, Any], key: str, path: Path) -> Any:
    if key not in batch:
        raise InputError(f"{path}: not a CIFAR file, it has no '{key}'")
    return batch[key]


def _read(path: Path, checksum: str | None = None) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: {error.strerror}; the folder must hold every file of the official archive"
        ) from error
    if checksum and hashlib.md5(content, usedforsecurity=False).hexdigest() != checksum:
        logger.warning("%s differs from the official file (MD5); results may differ from published ones", path)
    return read_pickle(content, path)


def read_pickle(content: bytes, path: Path) -> dict[str, Any]:
    """Reads a pickled dict of plain objects and NumPy arrays; nothing else is looked up, let alone called.

    Raises:
        InputError: the content is damaged, or asks for anything else.
    """
    try:
        # latin1 is how Python 3 reads the byte strings of the Python 2 originals.
        batch = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path}: damaged or not a pickle ({error})") from error
    if not isinstance(batch, dict):
        raise InputError(f"{path}: not a CIFAR file, it holds a {type(batch).__name__}")
    return batch


class _PlainUnpickler(pickle.Unpickler):
    allowed = frozenset(
        [("_codecs", "encode"), ("numpy", "dtype"), ("numpy", "ndarray")]
        + [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
        + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise InputError(f"refused: the pickle asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
