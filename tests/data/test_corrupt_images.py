"""Corrupt images are found, listed and left out, and nothing else changes."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import write_folder, write_published

import longtail
from longtail.config.schema import DataConfig
from longtail.data import corrupt_images
from longtail.data.build import find_corrupt_images, find_corrupt_test_images, load_data
from longtail.data.corrupt_images import CorruptImage, check_share, examine, from_text, image_files, to_text, without
from longtail.utils.errors import InputError


def truncate(root, *names):
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:200])


def settings(root, **more):
    return DataConfig(name="folder", root=str(root), on_corrupt_image="skip", **{"max_corrupt_images": 0.2, **more})


@pytest.fixture
def root(tmp_path):
    """A folder of images with four classes: 28 images."""
    return write_folder(tmp_path / "photos")


def corrupt(paths, root):
    return [CorruptImage(str(path.relative_to(root)), "why") for path in paths]


# ---- finding ----


def test_corrupt_images_are_found(root):
    truncate(root, "class 1/3.jpg", "class 0/2.jpg")
    (root / "class 2/0.jpg").write_bytes(b"")
    paths = image_files(load_data(settings(root)))
    assert len(paths) == 28
    results = list(examine(paths, root))
    found = {image.path: image.reason for image in results if image}
    assert found.keys() == {"class 0/2.jpg", "class 1/3.jpg", "class 2/0.jpg"}
    assert "truncated" in found["class 0/2.jpg"].lower()
    assert "empty" in found["class 2/0.jpg"]
    assert all(image is None or root / image.path == path for path, image in zip(paths, results, strict=True))


def test_images_are_queued_in_chunks(monkeypatch, tmp_path):
    """So that checking a million images can be interrupted."""
    seen = []
    monkeypatch.setattr(corrupt_images, "problem", lambda path, header_only: seen.append(path))
    monkeypatch.setattr("longtail.utils.threads.CHUNK", 20)
    walk = examine([tmp_path / str(number) for number in range(60)], tmp_path)
    next(walk)
    deadline = time.monotonic() + 20
    while len(seen) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(seen) == 20
    assert list(walk) == [None] * 59


def test_images_are_decoded_in_threads(monkeypatch, tmp_path):
    threads = set()

    def slow(path, header_only):
        threads.add(threading.get_ident())
        time.sleep(0.01)

    monkeypatch.setattr(corrupt_images, "problem", slow)
    assert list(examine([tmp_path / str(number) for number in range(20)], tmp_path)) == [None] * 20
    assert len(threads) > 1


def test_image_in_two_splits_is_decoded_once(tmp_path):
    root = write_published(tmp_path, "imagenet-lt")
    (root / "ImageNet_LT_val.txt").write_text((root / "ImageNet_LT_test.txt").read_text())
    dataset = load_data(DataConfig(name="imagenet-lt", root=str(root)))
    assert len(image_files(dataset)) == len(dataset.train) + len(dataset.test)


@pytest.mark.parametrize(("num_images", "limit"), [(3000, 0.01), (30, 1.0)])
def test_share_of_corrupt_images_has_a_limit(num_images, limit):
    images = [CorruptImage(f"{number}.jpg", "empty") for number in range(30)]
    check_share(images, num_images, limit)
    check_share([], 0, 0.0)
    with pytest.raises(InputError) as error:
        check_share(images, num_images - 1, limit)
    lines = str(error.value).splitlines()
    assert f"30 of {num_images - 1:,} images" in lines[0]
    assert "max_corrupt_images" in lines[0]
    assert lines[1] == "0.jpg: empty"
    assert len(lines) == 20


# ---- leaving out ----


def test_other_images_keep_their_splits_and_order(root):
    dataset = load_data(settings(root))
    left_out = [dataset.train.paths[3], dataset.train.paths[20], dataset.test.paths[1]]
    smaller = without(dataset, corrupt(left_out, root), root)
    for before, after in ((dataset.train, smaller.train), (dataset.test, smaller.test)):
        kept = [position for position, path in enumerate(before.paths) if path not in left_out]
        assert after.paths.tolist() == before.paths[kept].tolist()
        assert after.labels.tolist() == before.labels[kept].tolist()
    assert sum(smaller.class_counts) == sum(dataset.class_counts) - 2
    assert without(dataset, [], root) is dataset


def test_decoded_images_are_not_changed():
    dataset = load_data(DataConfig())
    assert image_files(dataset) == []
    assert without(dataset, [CorruptImage("a.jpg", "why")], Path("data")) is dataset


def test_class_or_split_without_images_is_an_error(root):
    dataset = load_data(settings(root))
    rare = [path for path in dataset.train.paths if path.parent.name == "class 3"]
    with pytest.raises(InputError, match=r"2 training images of 'class 3'.* class 3/\d.jpg: why"):
        without(dataset, corrupt(rare, root), root)
    with pytest.raises(InputError, match="no image of the test split"):
        without(dataset, corrupt(dataset.test.paths, root), root)
    with pytest.raises(InputError) as error:
        without(dataset, corrupt(image_files(dataset), root), root)
    assert len(str(error.value).splitlines()) == 5


def test_held_out_images_do_not_depend_on_skipped_ones(root):
    config = settings(root, val_fraction=0.3)
    dataset = load_data(config)
    truncate(root, "class 0/2.jpg", "class 1/3.jpg")
    skipped = find_corrupt_images(config, dataset)
    assert sorted(image.path for image in skipped) == ["class 0/2.jpg", "class 1/3.jpg"]
    smaller = load_data(config, skipped)
    gone = {root / image.path for image in skipped}
    for name, split in dataset.splits.items():
        assert [path for path in split.paths if path not in gone] == smaller.splits[name].paths.tolist()
    assert len(image_files(smaller)) == 26
    assert np.array_equal(smaller.class_counts, np.bincount(smaller.train.labels))
    with pytest.raises(InputError, match="2 of 28 images"):
        find_corrupt_images(settings(root, max_corrupt_images=0.0), dataset)


# ---- corrupt test images ----


def test_headers_of_training_images_and_all_of_the_others_are_read(root, caplog):
    dataset = load_data(settings(root, val_fraction=0.3))
    train, val, test = (
        [path.relative_to(root).as_posix() for path in split.paths] for split in dataset.splits.values()
    )
    for name in (train[0], val[0], test[1]):
        (root / name).write_bytes((root / name).read_bytes()[:-100])  # the header is intact
    truncated = [CorruptImage(path, "") for path in (val[0], test[1])]
    found = find_corrupt_test_images(settings(root), dataset, in_full=False)
    assert [image.path for image in found] == [image.path for image in truncated]
    (message,) = caplog.messages
    assert message.startswith("Left out 2 validation or test images that do not decode, see skipped_images.txt: ")
    assert val[0] in message
    assert test[1] in message
    with pytest.raises(InputError) as error:  # also the training image that is cut off
        find_corrupt_test_images(settings(root), dataset, in_full=True)
    lines = str(error.value).splitlines()
    assert "--data.on_corrupt_image skip" in lines[-1]
    starts = [line.split(": ")[0] for line in lines]
    assert sorted(starts) == sorted(str(root / name) for name in (train[0], val[0], test[1]))
    (root / train[5]).write_bytes(b"no image")
    with pytest.raises(InputError, match=f"{train[5]}: does not decode .*; put an intact file in its place"):
        find_corrupt_test_images(settings(root), dataset, in_full=False)


def test_many_corrupt_images_are_listed_in_a_file(tmp_path):
    root = write_folder(tmp_path / "photos", counts=(30, 30), size=8)
    dataset = load_data(settings(root))
    for number in range(30):
        (root / f"class 0/{number}.jpg").write_bytes(b"")
    with pytest.raises(InputError) as error:
        find_corrupt_test_images(settings(root), dataset, in_full=False)
    lines = str(error.value).splitlines()
    assert len(lines) == 20
    file = Path(lines[-1].removeprefix("and 11 more; '").partition("' lists all of them; ")[0])
    listed = from_text(file.read_bytes(), file)
    assert {root / image.path for image in listed} == set((root / "class 0").iterdir())
    file.unlink()


@pytest.mark.parametrize("crop", ["resized", "padded"])
def test_corrupt_test_image_does_not_cost_the_test(root, tmp_path, no_plots, caplog, crop):
    """Whether images are decoded in each epoch or once; also later, when the run is evaluated again."""
    test = load_data(settings(root)).test.paths[0]
    changes = {"data.root": str(root), "data.image_size": 16, "data.workers": 0, "augmentation.crop": crop}
    changes |= {"training.epochs": 1, "model.backbone": "resnet20", "model.num_experts": 2}
    config = longtail.load_recipe("folder-from-scratch", changes)
    whole = len(load_data(config.data).test)
    test.write_bytes(test.read_bytes()[:-100])
    run = longtail.train(config, tmp_path / "run")
    assert run.results()["test"]["num_images"] == whole - 1
    assert [root / image.path for image in run.skipped()] == [test]
    assert longtail.evaluate(run).num_images == whole - 1
    assert any("Left out 1 validation or test image that does not decode" in message for message in caplog.messages)


# ---- the list of skipped images ----


@pytest.mark.parametrize(
    "path", ["a/b.jpg", "a\tb.jpg", "a\nb.jpg", "a\\nb\\\\n.jpg", os.fsdecode(b"\xff.jpg"), "ä é.jpg", "\\"]
)
def test_list_can_hold_any_path(path):
    images = [CorruptImage("first.jpg", "the file is empty"), CorruptImage(path, "broken – ä")]
    text = to_text(images)
    assert text.count(b"\n") == 2
    assert from_text(text, Path("x")) == images


def test_format_of_the_list():
    assert to_text([CorruptImage("a b/c\n.jpg", "ä")]) == "a b/c\\n.jpg\tä\n".encode()
    assert from_text(b"", Path("skipped.txt")) == []


@pytest.mark.parametrize("content", [b"a.jpg\twhy\na.jpg\n", b"a.jpg\twhy"])
def test_damaged_list_is_named(content):
    with pytest.raises(InputError, match=r"skipped.txt: damaged"):
        from_text(content, Path("skipped.txt"))


# ---- in runs ----


@pytest.mark.slow
def test_run_skips_the_same_images_later(root, tmp_path, monkeypatch, no_plots):
    """Images are checked once. Evaluation skips the same ones, also with another root."""
    truncate(root, "class 0/2.jpg", "class 1/3.jpg")
    changes = {"data.root": str(root), "data.image_size": 16, "data.workers": 0, "data.on_corrupt_image": "skip"}
    changes |= {"training.epochs": 1, "model.backbone": "resnet20", "model.num_experts": 2}
    config = longtail.load_recipe("folder-from-scratch", {**changes, "data.max_corrupt_images": 0.2})
    run = longtail.train(config, tmp_path / "run")
    assert sorted(image.path for image in run.skipped()) == ["class 0/2.jpg", "class 1/3.jpg"]
    assert (run.folder / "skipped_images.txt").read_text().startswith("class ")
    num_images = longtail.evaluate(run).num_images
    monkeypatch.setattr("longtail.runs.context.find_corrupt_images", lambda *arguments: pytest.fail("checked again"))
    root.rename(tmp_path / "moved")
    moved = longtail.load_recipe(run.config_path, {"data.root": str(tmp_path / "moved")})
    assert longtail.evaluate(run, config=moved).num_images == num_images
    (run.folder / "skipped_images.txt").write_text("")
    with pytest.raises(InputError):
        longtail.evaluate(run, config=moved)
