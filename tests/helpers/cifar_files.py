"""Tiny files in the official layout of CIFAR."""

import io
import pickle
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torchvision.datasets


class Layout(NamedTuple):
    """Names in the official archive."""

    folder: str
    train: list[str]
    test: list[str]
    meta: str
    labels: str
    class_names: str
    num_classes: int


def _layout(official, labels, num_classes):
    train, test = ([name for name, _ in files] for files in (official.train_list, official.test_list))
    return Layout(
        official.base_folder, train, test, official.meta["filename"], labels, official.meta["key"], num_classes
    )


LAYOUTS = {
    "cifar10": _layout(torchvision.datasets.CIFAR10, "labels", 10),
    "cifar100": _layout(torchvision.datasets.CIFAR100, "fine_labels", 100),
}


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as byte strings of Python 2, like the official files."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_byte_string(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        size = len(content)
        self.write(b"U" + bytes([size]) if size < 256 else b"T" + size.to_bytes(4, "little"))
        self.write(content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_byte_string


def python2(value) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(value)
    return stream.getvalue().replace(b"numpy._core", b"numpy.core")  # NumPy's name at that time


WRITERS = {
    "python 2": python2,
    "protocol 2": lambda value: pickle.dumps(value, protocol=2),
    "protocol 4": lambda value: pickle.dumps(value, protocol=4),
    "protocol 5": lambda value: pickle.dumps(value, protocol=5),
}


def contents(name: str, per_file: int = 4) -> dict[str, dict]:
    """Returns the contents of each file, with a few random images."""
    layout = LAYOUTS[name]
    generator = np.random.default_rng(0)
    files = {
        file: {
            "data": generator.integers(0, 256, (per_file, 3072), dtype=np.uint8),
            layout.labels: generator.integers(0, layout.num_classes, per_file).tolist(),
            "filenames": ["a.png"] * per_file,
        }
        for file in (*layout.train, *layout.test)
    }
    return files | {layout.meta: {layout.class_names: [f"class {k}" for k in range(layout.num_classes)]}}


def write(root: Path, name: str, files: dict[str, dict] | None = None, writer=WRITERS["protocol 4"]) -> Path:
    folder = root / LAYOUTS[name].folder
    folder.mkdir(parents=True)
    for file, value in (files or contents(name)).items():
        (folder / file).write_bytes(writer(value))
    return folder
