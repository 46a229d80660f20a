"""Pictures that do not decode are found, pluralize and left out, and nothing else changes."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import write_folder, write_published

import longtail
from longtail.data import build as data_build
from longtail.data import corrupt_images
from longtail.data.corrupt_images import CorruptImage, check_share, examine, from_text, picture_files, to_text, without
from longtail.data.sources.image_folder import folder
from longtail.utils.errors import InputError


def spoil(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.write_bytes(path.read_bytes()[:200] if path.exists() else b"no picture")


def bad_ones(dataset, root: Path) -> list[CorruptImage]:
    return [found for found in examine(picture_files(dataset), root) if found]


@pytest.fixture
def photos(tmp_path):
    return write_folder(tmp_path / "photos")


def test_what_does_not_decode_is_found_in_order(photos):
    spoil(photos, "class 1/3.jpg", "class 0/2.jpg")
    (photos / "class 2/0.jpg").write_bytes(b"")
    dataset = folder(photos, 0.2, 0)
    found = {bad.path: bad.reason for bad in bad_ones(dataset, photos)}
    assert found.keys() == {"class 0/2.jpg", "class 1/3.jpg", "class 2/0.jpg"}
    assert "runcated" in found["class 0/2.jpg"]
    assert found["class 2/0.jpg"] == "the file is empty"
    everything = list(examine(picture_files(dataset), photos))
    assert len(everything) == len(dataset.train) + len(dataset.test) == 28
    for path, bad in zip(picture_files(dataset), everything, strict=True):
        assert bad is None or photos / bad.path == path


def test_pictures_are_decoded_a_part_at_a_time(monkeypatch, tmp_path):
    """So that a walk over a million can be interrupted."""
    seen = []
    monkeypatch.setattr(corrupt_images, "problem", lambda path: seen.append(path))
    walk = examine([tmp_path / str(number) for number in range(3000)], tmp_path)
    next(walk)
    deadline = time.monotonic() + 20
    while len(seen) < corrupt_images.AT_A_TIME and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.1)
    assert len(seen) == corrupt_images.AT_A_TIME
    walk.close()


def test_pictures_are_decoded_in_several_threads(monkeypatch, tmp_path):
    threads = set()

    def slow(path):
        threads.add(threading.get_ident())
        time.sleep(0.01)

    monkeypatch.setattr(corrupt_images, "problem", slow)
    assert list(examine([tmp_path / str(number) for number in range(20)], tmp_path)) == [None] * 20
    assert len(threads) > 1


def test_a_picture_in_two_parts_is_decoded_once(tmp_path):
    root = write_published(tmp_path, "imagenet-lt")
    (root / "ImageNet_LT_val.txt").write_text((root / "ImageNet_LT_test.txt").read_text())
    config = longtail.load_recipe(
        overrides={"data.name": "imagenet-lt", "data.root": str(root), "data.imbalance": "none"}
    )
    dataset = data_build.load_data(config)
    assert len(picture_files(dataset)) == len(dataset.train) + len(dataset.test)


def test_the_rest_stays_where_it_was_drawn(photos):
    whole = folder(photos, 0.2, 0)
    gone = [whole.train.paths[3], whole.train.paths[20], whole.test.paths[1]]
    bad = [CorruptImage(str(path.relative_to(photos)), "why") for path in gone]
    smaller = without(whole, bad, photos)
    for was, now in ((whole.train, smaller.train), (whole.test, smaller.test)):
        kept = [position for position, path in enumerate(was.paths) if path not in gone]
        assert now.paths.tolist() == was.paths[kept].tolist()
        assert now.labels.tolist() == was.labels[kept].tolist()
    assert sum(smaller.class_counts) == sum(whole.class_counts) - 2
    assert without(whole, [], photos) is whole


def test_decoded_pixels_are_left_alone():
    dataset = longtail.data.sources.digits.digits(0)
    assert picture_files(dataset) == []
    assert without(dataset, [CorruptImage("a.jpg", "why")], Path("data")).train is dataset.train


def test_a_class_or_a_part_without_images_is_an_error(photos):
    whole = folder(photos, 0.2, 0)

    def lose(paths):
        return [CorruptImage(str(path.relative_to(photos)), "why") for path in paths]

    rare = lose(path for path in whole.train.paths if path.parent.name == "class 3")
    with pytest.raises(
        InputError, match=r"class 'class 3' has no training image that decodes \(of 2\).* class 3/\d.jpg: why"
    ):
        without(whole, rare, photos)
    with pytest.raises(InputError, match="no test image decodes"):
        without(whole, lose(whole.test.paths), photos)
    with pytest.raises(InputError) as caught:
        without(whole, lose([*whole.train.paths, *whole.test.paths]), photos)
    assert len(str(caught.value).splitlines()) == 5


def test_only_a_share_may_be_left_out():
    bad = [CorruptImage(f"{number}.jpg", "empty") for number in range(30)]
    check_share(bad, 3000, 0.01)
    check_share([], 0, 0.0)
    with pytest.raises(InputError) as caught:
        check_share(bad, 2999, 0.01)
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("30 of 2,999 images do not decode (1.0%), and data.max_corrupt_images allows 1.0%")
    assert lines[1] == "0.jpg: empty"
    assert len(lines) == 20


@pytest.mark.parametrize(
    "path", ["a/b.jpg", "a\tb.jpg", "a\nb.jpg", "a\\nb\\\\n.jpg", os.fsdecode(b"\xff.jpg"), "ä é.jpg", "\\"]
)
def test_the_list_comes_back(path):
    bad = [CorruptImage("first.jpg", "the file is empty"), CorruptImage(path, "broken – ä")]
    text = to_text(bad)
    assert text.count(b"\n") == 2
    assert from_text(text, Path("x")) == bad


@pytest.mark.parametrize(
    ("content", "named"), [(b"a.jpg\twhy\na.jpg\n", r"skipped.txt:2: damaged"), (b"a.jpg\twhy", "not complete")]
)
def test_a_damaged_list_is_named(content, named):
    with pytest.raises(InputError, match=named):
        from_text(content, Path("skipped.txt"))
    assert from_text(b"", Path("skipped.txt")) == []


def settings(root, **more):
    return longtail.load_recipe("folder", {"data.root": str(root), "data.image_size": 16, "data.workers": 0,
                                      "data.on_corrupt_image": "skip", "data.max_corrupt_images": 0.2} | more)  # fmt: skip


def test_held_out_images_do_not_depend_on_what_is_skipped(photos):
    config = settings(photos, **{"data.val_fraction": 0.3})
    whole = data_build.load_data(config)
    spoil(photos, "class 0/2.jpg", "class 1/3.jpg")
    seen = []
    bad = data_build.find_corrupt_images(config, whole, lambda walk, total: seen.append(total) or walk)
    assert seen == [28]
    assert sorted(found.path for found in bad) == ["class 0/2.jpg", "class 1/3.jpg"]
    smaller = data_build.load_data(config, bad)
    for was, now in ((whole.train, smaller.train), (whole.val, smaller.val), (whole.test, smaller.test)):
        assert [path for path in was.paths if path.name not in ("2.jpg", "3.jpg")] == [
            path for path in now.paths if path.name not in ("2.jpg", "3.jpg")
        ]
    assert len(picture_files(smaller)) == 26
    assert np.array_equal(smaller.class_counts, np.bincount(smaller.train.labels))
    with pytest.raises(InputError, match="2 of 28 images do not decode"):
        data_build.find_corrupt_images(settings(photos, **{"data.max_corrupt_images": 0.0}), whole)


def test_a_run_keeps_what_it_skipped(photos, tmp_path, monkeypatch):
    """Looked for once; tested again, and with another root, the same images are left out."""
    spoil(photos, "class 0/2.jpg", "class 1/3.jpg")
    config = settings(photos, **{"training.epochs": 1, "model.backbone": "resnet20", "model.num_experts": 2})
    run = longtail.train(config, tmp_path / "run")
    assert sorted(bad.path for bad in run.skipped()) == ["class 0/2.jpg", "class 1/3.jpg"]
    assert (run.folder / "skipped_images.txt").read_text().startswith("class ")
    tested = longtail.evaluate(run).num_images
    monkeypatch.setattr(data_build, "find_corrupt_images", lambda *arguments: pytest.fail("looked again"))
    monkeypatch.setattr("longtail.api.data_build.find_corrupt_images", data_build.find_corrupt_images)
    photos.rename(tmp_path / "moved")
    moved = longtail.load_recipe(run.config_path, {"data.root": str(tmp_path / "moved")})
    assert longtail.evaluate(run, config=moved).num_images == tested
    (run.folder / "skipped_images.txt").write_text("")
    with pytest.raises(InputError, match=r"does not decode|train again"):
        longtail.evaluate(run, config=moved)


def test_a_sound_data_set_is_looked_at_once_too(photos, tmp_path):
    config = settings(photos, **{"training.epochs": 1, "model.backbone": "resnet20", "model.num_experts": 2})
    run = longtail.train(config, tmp_path / "run")
    assert run.skipped() == []
    assert longtail.train(settings(photos, **{"training.epochs": 1, "model.backbone": "resnet20", "model.num_experts": 2,  # noqa: E501
                                              "data.on_corrupt_image": "error"}), tmp_path / "other").skipped() is None  # fmt: skip  # noqa: E501
