"""Tiny data sets of image files: one folder per class, or in the layout of published data sets."""

from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = (14, 7, 4, 3)
"""Training images of each class"""

# Path of an image, by split, label and number; name of the list file of a split.
PUBLISHED = {
    "imagenet-lt": ("{split}/n0144{label}/n0144{label}_{number}.JPEG", "ImageNet_LT_{split}.txt"),
    "inaturalist2018": ("train_val2018/Plantae/{label}/{split}{number}.jpg", "iNaturalist18_{split}.txt"),
    "places-lt": ("data_256/{label}/place/{split}_{number:08}.jpg", "Places_LT_{split}.txt"),
}
SPLITS = {
    "imagenet-lt": ("train", "val", "test"),
    "inaturalist2018": ("train", "val"),
    "places-lt": ("train", "val", "test"),
}


def write_published(root, name, counts=COUNTS, size=40):
    """Writes a data set with its list files; other splits than train have two images of each class."""
    path, listed = PUBLISHED[name]
    for split in SPLITS[name]:
        lines = []
        for label, number, image in _images(counts if split == "train" else [2] * len(counts), size):
            relative = path.format(split=split, label=label, number=number)
            (root / relative).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / relative)
            lines.append(f"{relative} {label}\n")
        (root / listed.format(split=split)).write_text("".join(lines))
    return root


def write_folder(root, counts=COUNTS, size=40):
    """Writes one folder of images per class."""
    for label, number, image in _images(counts, size):
        (root / f"class {label}").mkdir(parents=True, exist_ok=True)
        image.save(root / f"class {label}" / f"{number}.jpg")
    return root


def touch(root, *names):
    """Creates empty files, where only their names matter."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def paths_and_labels(split, root: Path):
    """The images of a split, as (path from root, label)."""
    paths = [path.relative_to(root).as_posix() for path in split.paths]
    return list(zip(paths, split.labels.tolist(), strict=True))


def _images(counts, size):
    """Noise around a colour of each class; the width is larger than the height."""
    generator = np.random.default_rng(0)
    for label, count in enumerate(counts):
        for number in range(count):
            pixels = generator.integers(0, 128, (size, size + 8, 3)) + np.array([40, 20, 30]) * (label % 4)
            yield label, number, Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
