"""Folders of PNG files on which `longtail train FOLDER` is measured.

    python benchmarks/accuracy/folders.py data/folders --root data

- cifar100-lt: the training images of CIFAR-100 with imbalance 100 (10,847), and all test images.
- cifar-12: 797 images in 12 classes, 240 down to 5; and, in cifar-12-new, 1,200 other images of these classes.
- digits: the long-tailed digits of the recipe digits-lt-ride, and their test images, enlarged to 96 pixels.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from longtail.config.recipes import load_recipe
from longtail.data.build import load_data
from longtail.data.splits import ImageSplit

TWELVE = (3, 15, 21, 26, 37, 48, 52, 60, 69, 76, 85, 90)
"""Classes of cifar-12, the most common first"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--root", default="data", help="folder with CIFAR-100")
    options = parser.parse_args()
    output = options.output
    cifar = load_data(load_recipe("cifar100-lt-ce", {"data.root": options.root, "data.imbalance": "none"}).data)
    names = cifar.class_names
    counts = [int(500 * 0.01 ** (label / 99)) for label in range(100)]
    for label, count in enumerate(counts):
        write(cifar.train, label, output / "cifar100-lt" / "train" / names[label], count)
        write(cifar.test, label, output / "cifar100-lt" / "test" / names[label])
    for rank, label in enumerate(TWELVE):
        write(cifar.train, label, output / "cifar-12" / names[label], round(240 * (5 / 240) ** (rank / 11)))
        write(cifar.test, label, output / "cifar-12-new" / names[label])
    digits = load_data(load_recipe("digits-lt-ride").data)
    for label in range(10):
        for name, split in (("train", digits.train), ("test", digits.test)):
            write(split, label, output / "digits" / name / str(label), size=96)


def write(split: ImageSplit, label: int, folder: Path, count: int | None = None, size: int | None = None) -> None:
    """Writes the first images of a class, or all of them; the names are their positions."""
    folder.mkdir(parents=True, exist_ok=True)
    assert split.pixels is not None
    for position in np.flatnonzero(split.labels == label)[:count]:
        image = Image.fromarray(split.pixels[position])
        image = image if size is None else image.resize((size, size), Image.Resampling.BICUBIC)
        image.save(folder / f"{position:05}.png")


if __name__ == "__main__":
    main()
