"""Miniature data sets in the layouts they are published in, of tiny pictures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = (14, 7, 4, 3)
"""Training images of each class"""

# Where the lists say a picture is, by part, class and number; and the lists of each part.
PUBLISHED = {
    "imagenet-lt": ("{part}/n0144{label}/n0144{label}_{number}.JPEG", "ImageNet_LT_{part}.txt"),
    "inaturalist2018": ("train_val2018/Plantae/{label}/{part}{number}.jpg", "iNaturalist18_{part}.txt"),
    "places-lt": ("data_256/{label}/place/{part}_{number:08}.jpg", "Places_LT_{part}.txt"),
}
PARTS = {
    "imagenet-lt": ("train", "val", "test"),
    "inaturalist2018": ("train", "val"),
    "places-lt": ("train", "val", "test"),
}


def write_published(root: Path, name: str, counts: tuple[int, ...] = COUNTS, size: int = 40) -> Path:
    """A data set with its list files; two pictures of each class to validate and to test with."""
    where, listed = PUBLISHED[name]
    for part in PARTS[name]:
        lines = []
        for label, number, image in _pictures(counts if part == "train" else [2] * len(counts), size):
            relative = where.format(part=part, label=label, number=number)
            (root / relative).parent.mkdir(parents=True, exist_ok=True)
            image.save(root / relative)
            lines.append(f"{relative} {label}\n")
        (root / listed.format(part=part)).write_text("".join(lines))
    return root


def write_folder(root: Path, counts: tuple[int, ...] = COUNTS, size: int = 40) -> Path:
    """One folder per class."""
    for label, number, image in _pictures(counts, size):
        (root / f"class {label}").mkdir(parents=True, exist_ok=True)
        image.save(root / f"class {label}" / f"{number}.jpg")
    return root


def _pictures(counts: tuple[int, ...] | list[int], size: int) -> Iterator[tuple[int, int, Image.Image]]:
    """Noise in a colour of its own for each class, with one side longer."""
    generator = np.random.default_rng(0)
    for label, count in enumerate(counts):
        for number in range(count):
            pixels = generator.integers(0, 128, (size, size + 8, 3)) + np.array([40, 20, 30]) * (label % 4)
            yield label, number, Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
