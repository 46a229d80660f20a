"""Copies are found by bytes or pixels, reported before training, and left out of the test split if asked for."""

import shutil

import numpy as np
import pytest
from helpers.layouts import write_folder
from PIL import Image

import longtail
from longtail.config.schema import DataConfig
from longtail.data import copies
from longtail.data.build import load_data
from longtail.data.copies import TAIL, AllImages, find_first_copies, log_copies, without_test_copies
from longtail.data.splits import DataSplits, ImageSplit
from longtail.utils.errors import InputError


def split(paths, labels=None):
    return ImageSplit(np.array(labels or [0] * len(paths), dtype=np.int64), paths=np.array(paths, dtype=object))


def dataset(train, test, val=None):
    return DataSplits(train, val, test, ("cat", "dog"))


@pytest.fixture
def files(tmp_path):
    """Files that are equal in size, in size and end, or altogether."""
    end = b"e" * TAIL
    contents = [b"1" + end, b"2" + end, b"1" + end, b"x" * (TAIL + 1), b"short", b"short", b"", b"", b"2" + end]
    paths = []
    for number, content in enumerate(contents):
        paths.append(tmp_path / f"{number}.jpg")
        paths[-1].write_bytes(content)
    return paths


def test_first_copies_of_files(files, tmp_path):
    paths = [*files, files[3], tmp_path / "missing.jpg", tmp_path / "missing too.jpg"]
    images = AllImages(dataset(split(paths[:4]), split(paths[6:]), split(paths[4:6])), tmp_path)
    assert images.paths == paths
    contents = [path.read_bytes() if path.exists() else b"" for path in paths]
    slow = [contents.index(content) if content else position for position, content in enumerate(contents)]
    assert find_first_copies(images).tolist() == slow
    assert slow == [0, 1, 0, 3, 4, 4, 6, 7, 1, 3, 10, 11]


def test_only_files_that_may_be_equal_are_read(files, tmp_path, monkeypatch):
    read = []
    content = copies._content
    in_full = lambda path, last=None: content(path, last) if last else read.append(path.name)  # noqa: E731
    monkeypatch.setattr(copies, "_content", in_full)
    find_first_copies(AllImages(dataset(split(files[:4]), split(files[4:])), tmp_path))
    assert sorted(read) == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.jpg", "8.jpg"]


def test_first_copies_of_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2, (60, 2, 2, 3), dtype=np.uint8)
    pixels[::7] = pixels[3]
    labels = np.zeros(60, dtype=np.int64)
    images = AllImages(dataset(ImageSplit(labels[:40], pixels[:40]), ImageSplit(labels[40:], pixels[40:])), tmp_path)
    slow = [next(k for k in range(60) if (pixels[k] == row).all()) for row in pixels]
    assert find_first_copies(images).tolist() == slow
    assert images.names[39:41] == ["train[39]", "test[0]"]


def test_copies_are_logged(files, tmp_path, caplog):
    train, test = split([files[0], files[1], files[2]], [0, 1, 1]), split([files[8], files[3]])
    with caplog.at_level("WARNING", "longtail"):
        log_copies(dataset(train, test, split([files[4], files[5]])), tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "1 test image is a copy of a training or validation image (data.duplicates drop-test leaves it out): "
        "8.jpg = 1.jpg",
        "2 images are copies of images with another label: 2.jpg = 0.jpg, 8.jpg = 1.jpg",
        "1 image occurs several times in a split: 5.jpg = 4.jpg",
    ]
    caplog.clear()
    log_copies(dataset(split(files[:2]), split(files[3:5])), tmp_path)
    assert not caplog.records


def test_images_that_were_encoded_again_are_logged(tmp_path, caplog):
    """If they are decoded into memory anyway; each file is decoded once."""
    photos = write_folder(tmp_path / "photos")
    image = next(photos.rglob("*.jpg"))
    for name in ("again.png", "again.bmp"):
        Image.open(image).save(photos / "class 1" / name)
    (photos / "class 1" / "copy.jpg").write_bytes(image.read_bytes())
    changes = {"data.root": str(photos), "data.image_size": 32, "model.backbone": "resnet20", "device": "cpu"}
    config = longtail.load_recipe("folder-from-scratch", changes | {"training.epochs": 1, "router.train": False})
    with caplog.at_level("WARNING", "longtail"):
        longtail.train(config, tmp_path / "run")
    (line,) = [record.getMessage() for record in caplog.records if "pixels" in record.getMessage()]
    assert line.startswith("2 images have the pixels of another one")
    assert line.count("again") >= 2
    assert any("copy.jpg" in record.getMessage() for record in caplog.records if "pixels" not in record.getMessage())


def test_three_examples_are_logged(tmp_path, caplog):
    pixels = np.zeros((9, 2, 2, 3), dtype=np.uint8)
    part = ImageSplit(np.zeros(9, dtype=np.int64), pixels)
    with caplog.at_level("WARNING", "longtail"):
        log_copies(dataset(part, part.take(np.arange(0))), tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("8 images occur several times in a split: train[1] = train[0], ")
    assert line.endswith("train[3] = train[0] and 5 more")


def test_test_copies_are_left_out(tmp_path, caplog):
    root = write_folder(tmp_path / "photos")
    original = load_data(DataConfig(name="folder", root=str(root), val_fraction=0.2))
    for number, name in enumerate(("train", "val")):
        source = original.splits[name].paths[0]
        shutil.copy(source, original.test.paths[number])
    kept = load_data(DataConfig(name="folder", root=str(root), val_fraction=0.2))
    assert kept.test.paths.tolist() == original.test.paths.tolist()
    with caplog.at_level("INFO", "longtail"):
        smaller = load_data(DataConfig(name="folder", root=str(root), val_fraction=0.2, duplicates="drop-test"))
    assert "Left out 2 test images that are copies" in caplog.text
    assert smaller.test.paths.tolist() == original.test.paths[2:].tolist()
    assert smaller.test.labels.tolist() == original.test.labels[2:].tolist()
    assert smaller.train.paths.tolist() == original.train.paths.tolist()


def test_a_test_split_of_copies_is_an_error(files, tmp_path):
    with pytest.raises(InputError, match="drop-test"):
        without_test_copies(dataset(split(files[:2]), split([files[2], files[8]])), tmp_path)
