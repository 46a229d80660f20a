"""Planted faults in a folder are found, once each, and nothing else is."""

import shutil

import numpy as np
import pytest
from PIL import Image

from longtail.config.schema import DataConfig
from longtail.data.build import load_data
from longtail.data.check.findings import ImageChecks
from longtail.data.check.reading import read_images
from longtail.data.copies import AllImages
from longtail.data.splits import DataSplits, ImageSplit


def save(path, seed, size=(80, 64)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    image.save(path)
    return image


@pytest.fixture
def root(tmp_path):
    """Two classes with 6 training and 4 test images each, without faults."""
    seed = 0
    for name in ("cat", "dog"):
        for split, count in (("train", 6), ("test", 4)):
            for number in range(count):
                save(tmp_path / split / name / f"{number}.png", seed)
                seed += 1
    return tmp_path


def check(root, min_side=32):
    images = AllImages(load_data(DataConfig(name="folder", root=str(root))), root)
    return ImageChecks(images, read_images(images), min_side)


def found(root):
    return [finding[:5] for finding in check(root).findings()]


def test_a_good_folder_has_no_findings(root):
    assert found(root) == []
    assert check(root).summary() == [
        "12 train, 8 test images in 2 classes",
        "smallest 80 x 64, median 80 x 64, largest 80 x 64 pixels",
    ]


def test_damaged_blank_tiny_and_large_images(root):
    damaged = root / "test/dog/3.png"
    damaged.write_bytes(damaged.read_bytes()[:-600])
    for name in ("train/cat/0.png", "test/cat/0.png"):  # not reported as copies of each other
        Image.new("RGB", (80, 64), "grey").save(root / name)
    save(root / "train/dog/0.png", 100, (80, 31))
    save(root / "train/dog/1.png", 101, (400, 400))
    assert found(root) == [
        ("unreadable", "test/dog/3.png", "dog", "test", ""),
        ("blank", "train/cat/0.png", "cat", "train", ""),
        ("blank", "test/cat/0.png", "cat", "test", ""),
        ("tiny", "train/dog/0.png", "dog", "train", ""),
        ("unusual size", "train/dog/1.png", "dog", "train", ""),
    ]
    assert next(iter(check(root).findings())).detail  # the reason


def test_small_classes(root):
    for number in range(3):
        (root / f"train/dog/{number}.png").unlink()
        (root / f"test/cat/{number}.png").unlink()
    details = [finding[::5] for finding in check(root).findings()]
    assert details == [("few images", "6 for training, 1 for testing"), ("few images", "3 for training, 4 for testing")]


def test_copies_and_near_copies(root):
    shutil.copy(root / "train/cat/0.png", root / "test/dog/0.png")
    Image.open(root / "train/cat/1.png").save(root / "train/cat/5.png", compress_level=0)
    Image.open(root / "train/dog/2.png").resize((160, 128)).save(root / "test/dog/2.png")
    Image.open(root / "test/cat/1.png").save(root / "test/dog/1.jpg")
    (root / "test/dog/1.png").unlink()
    findings = list(check(root).findings())
    assert [finding[:5] for finding in findings] == [
        ("copy, two splits", "test/dog/0.png", "dog", "test", "train/cat/0.png"),
        ("copy, two labels", "test/dog/0.png", "dog", "test", "train/cat/0.png"),
        ("copy", "train/cat/5.png", "cat", "train", "train/cat/1.png"),
        ("near copy, two splits", "test/dog/2.png", "dog", "test", "train/dog/2.png"),
        ("near copy, two labels", "test/dog/1.jpg", "dog", "test", "test/cat/1.png"),
    ]
    assert [finding.detail for finding in findings[:3]] == ["same bytes, train", "same bytes, cat", "same pixels"]
    assert findings[3].detail.startswith(("similarity 0.9", "similarity 1.0"))


def test_a_file_that_is_listed_twice(root):
    paths = [root / "train/cat/0.png", root / "train/cat/1.png", root / "train/cat/0.png"]
    split = ImageSplit(np.array([0, 1, 0]), paths=np.array(paths, dtype=object))
    images = AllImages(DataSplits(split, None, split.take(np.array([1])), ("cat", "dog")), root)
    facts = read_images(images)
    assert facts[0] is facts[2]
    details = {finding.detail for finding in ImageChecks(images, facts, 1).findings()}
    assert {"same file, listed twice", "same file, listed twice, train"} <= details


def test_decoded_images(tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    pixels[15] = pixels[2]
    labels = np.arange(20) % 2
    images = AllImages(
        DataSplits(ImageSplit(labels[:12], pixels[:12]), None, ImageSplit(labels[12:], pixels[12:]), ("a", "b")),
        tmp_path,
    )
    findings = [finding[:5] for finding in ImageChecks(images, read_images(images), 64).findings()]
    assert findings == [
        ("copy, two splits", "test[3]", "b", "test", "train[2]"),
        ("copy, two labels", "test[3]", "b", "test", "train[2]"),
    ]
