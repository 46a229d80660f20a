"""CIFAR-10 and CIFAR-100, from the official Python archives. Reading them executes no code."""

import hashlib
import io
import logging
import pickle
import socket
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.config.schema import DataConfig
from longtail.data.sources import register
from longtail.data.splits import DataSplits, ImageSplit
from longtail.utils.errors import InputError

logger = logging.getLogger(__name__)

SERVER_TIMEOUT = 60.0
"""Seconds without data after which a download fails"""

MAX_UNPACKED = 2**30
"""Bytes of an unpacked archive at most; the official ones have 0.2 GB"""

_CIFAR100_NAMES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel
    can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion
    lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
    palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
    rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower
    sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
    willow_tree wolf woman worm
"""
CLASS_NAMES = {
    "cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    "cifar100": tuple(_CIFAR100_NAMES.split()),
}
"""In the order of the labels"""


@register("cifar10", num_classes=10, image_size=32)
@register("cifar100", num_classes=100, image_size=32)
def load(settings: DataConfig) -> DataSplits:
    """Loads the 50,000 training and 10,000 test images. Downloads them if ``data.root`` does not hold them.

    ``data.root`` is or holds the official folder, such as ``cifar-100-python``, or holds its archive.

    Raises:
        InputError: the files are missing and cannot be downloaded, or are damaged.
    """
    import torchvision.datasets

    official = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}[settings.name]
    folder = _find_folder(Path(settings.root), official)
    names = CLASS_NAMES[settings.name]
    train, test = (_read_split(folder, files, len(names)) for files in (official.train_list, official.test_list))
    return DataSplits(train, None, test, names)


def _find_folder(root: Path, official: Any) -> Path:
    for folder in (root / official.base_folder, root):
        if (folder / official.meta["filename"]).is_file():
            return folder
    archives = sorted(root.glob(official.filename.replace(".gz", ".[gx]z")))
    if archives:
        _unpack(archives[0], root / official.base_folder, official.meta["filename"])
    else:
        _download(root, official)
    return Path(root, official.base_folder)


def _download(root: Path, official: Any) -> None:
    from torchvision.datasets import utils

    logger.info("Downloading %s to %s", official.url, root)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SERVER_TIMEOUT)  # torchvision has no timeout
    try:
        with tempfile.TemporaryDirectory() as temporary:
            utils.download_url(official.url, temporary, md5=official.tgz_md5)
            root.mkdir(parents=True, exist_ok=True)
            _unpack(Path(temporary, official.filename), root / official.base_folder, official.meta["filename"])
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"'{root}' (data.root) holds neither {official.base_folder}/ nor {official.filename}, and downloading "
            f"{official.url} failed ({str(error).splitlines()[0]}); put one of them there"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _unpack(archive: Path, folder: Path, meta: str) -> None:
    """Unpacks the folder of an archive: all of it or nothing. Several processes may do this at once."""
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent) as temporary, tarfile.open(archive) as tar:
            if sum(member.size for member in tar) > MAX_UNPACKED:
                raise ValueError("it would take more than 1 GiB")
            tar.extractall(temporary, filter="data")
            try:
                Path(temporary, folder.name).rename(folder)
            except OSError:
                if not Path(folder, meta).is_file():  # otherwise another process was faster
                    raise
    except Exception as error:  # a damaged archive can raise anything
        raise InputError(f"{archive}: cannot unpack {folder.name}/ from it ({error})") from error


def _read_split(folder: Path, files: Iterable[tuple[str, str]], num_classes: int) -> ImageSplit:
    pixels, labels = [], []
    for name, md5 in files:
        path = folder / name
        data, targets = _read_file(path, md5, "labels" if num_classes == 10 else "fine_labels")
        valid = data.dtype == np.uint8 and data.shape == (targets.size, 3 * 32 * 32) and targets.dtype.kind in "iu"
        if not valid or targets.ndim != 1 or not np.isin(targets, range(num_classes)).all():
            raise InputError(f"{path}: must hold uint8 images (n, 3072) and n labels from 0 to {num_classes - 1}")
        pixels.append(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(targets.astype(np.int64))
    return ImageSplit(np.concatenate(labels), np.ascontiguousarray(np.concatenate(pixels)))


def _read_file(path: Path, md5: str, labels: str) -> tuple[NDArray[Any], NDArray[Any]]:
    try:
        content = path.read_bytes()
        # latin1 is how Python 3 reads the byte strings of the official files, which Python 2 wrote.
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
        data, targets = np.asarray(batch["data"]), np.asarray(batch[labels])
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(f"{path}: cannot be read as a CIFAR file ({error!r})") from error
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        logger.warning("%s differs from the official file (MD5), so results may differ from published ones", path)
    return data, targets


class _ArrayUnpickler(pickle.Unpickler):
    """Loads plain objects and NumPy arrays. Looks up nothing else, so a pickle cannot call functions."""

    allowed = frozenset(
        [("_codecs", "encode"), ("numpy", "dtype"), ("numpy", "ndarray")]
        + [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
        + [(f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"refused: it asks for {module}.{name}, which no CIFAR file needs")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)
