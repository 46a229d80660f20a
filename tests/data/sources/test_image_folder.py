"""Folders of images: which images are found, how they are split, and all problems that folders can have."""

import numpy as np
import pytest
from helpers.layouts import paths_and_labels, touch

from longtail.config.schema import DataConfig
from longtail.data.imbalance import hold_out
from longtail.data.sources import load_source
from longtail.data.sources.image_files import find_images_below
from longtail.utils.errors import InputError


def load(root, test_fraction=0.2, seed=0):
    return load_source(DataConfig(name="folder", root=str(root), test_fraction=test_fraction, subset_seed=seed))


def problems(root, test_fraction=0.2):
    with pytest.raises(InputError) as error:
        load(root, test_fraction)
    return str(error.value).splitlines()


# ---- folders of splits ----


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_folders_of_splits(tmp_path, val):
    touch(tmp_path, "train/b/2.jpg", "train/b/1.PNG", "train/a/x/y/1.jpeg", "train/a/1.webp", "train/B/1.jpg")
    touch(tmp_path, f"{val}/b/v.jpg", "test/a/t.jpg", "test/b/t.gif")
    touch(tmp_path, "train/a/notes.txt", "train/.cache/1.jpg", "train/a/._1.jpg", "train/a/.x/1.jpg", ".git/a/1.jpg")
    touch(tmp_path, "train/loose.jpg", "readme.txt", "extra/1.jpg")
    dataset = load(tmp_path)
    assert dataset.class_names == ("B", "a", "b")
    assert paths_and_labels(dataset.train, tmp_path) == [
        ("train/B/1.jpg", 0),
        ("train/a/1.webp", 1),
        ("train/a/x/y/1.jpeg", 1),
        ("train/b/1.PNG", 2),
        ("train/b/2.jpg", 2),
    ]
    assert paths_and_labels(dataset.val, tmp_path) == [(f"{val}/b/v.jpg", 2)]
    assert paths_and_labels(dataset.test, tmp_path) == [("test/a/t.jpg", 1), ("test/b/t.gif", 2)]


def test_validation_folder_is_optional(tmp_path):
    touch(tmp_path, "Train/a/1.jpg", "Train/b/1.jpg", "TEST/a/1.jpg")
    assert load(tmp_path).val is None


def test_skipped_files_are_logged(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("longtail.data.image_io.has_heif", lambda: False)
    touch(tmp_path, "train/a/1.jpg", "train/b/1.JFIF", "test/a/1.avif", "test/b/1.png")
    touch(tmp_path, "train/a/1.heic", "train/a/2.heic", "train/notes.txt", "train/2.jpg", "train/3.jpg", "old/c/1.jpg")
    with caplog.at_level("INFO", logger="longtail"):
        dataset = load(tmp_path)
    assert len(dataset.train) == len(dataset.test) == 2
    folders, files, loose = [record.getMessage() for record in caplog.records]
    assert f"'{tmp_path}'" in folders
    assert folders.endswith(": 'old'")
    assert f"2 files in '{tmp_path}/train'" in files
    assert files.endswith(": 2 .heic; pip install 'longtail[heic]' reads HEIC images")
    assert f"2 images in '{tmp_path}/train'" in loose


@pytest.mark.parametrize(
    ("names", "facts"),
    [
        (["train/a/1.jpg", "train/b/1.jpg"], "each class in 'ROOT' has a single image"),
        (["test/a/1.jpg", "val/a/1.jpg"], "'ROOT' has test/ and val/ but no train/ folder"),
        (["test/a/1.jpg", "cat/1.jpg", "dog/1.jpg"], "'ROOT' has test/ but no train/ folder"),
        (["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg", "test/a/1.jpg"], "'ROOT/val' and 'ROOT/valid'"),
        (["train/1.jpg", "test/a/1.jpg"], "'ROOT/train' has no class folders"),
        (["train/a/1.jpg", "test/a/1.jpg"], "'ROOT/train' has a single class folder, 'a'"),
        (["train/a/1.jpg", "train/b/1.txt", "test/a/1.jpg"], "'ROOT/train' has a single class folder, 'a'"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/c/1.jpg"], "the test split has no class of the training split, only"),
        (["train/a/1.jpg", "train/b\x1b/1.jpg", "test/a/1.jpg"], "'ROOT/train/b\\x1b': "),
    ],
)  # fmt: skip
def test_problem_of_a_split_is_named(tmp_path, names, facts):
    touch(tmp_path, *names)
    (problem,) = problems(tmp_path)
    assert problem.startswith(facts.replace("ROOT", str(tmp_path)))


@pytest.mark.parametrize(
    ("train", "test", "difference"),
    [
        ("Cat", "cat", "upper and lower case, spaces or accents"),
        ("cat ", "cat", "upper and lower case, spaces or accents"),
        ("sea lion", "sea  lion", "upper and lower case, spaces or accents"),
        ("caf\u00e9", "cafe", "upper and lower case, spaces or accents"),
        ("caf\u00e9", "cafe\u0301", "their Unicode form (NFC or NFD)"),
    ],
)
def test_similar_classes_are_named_as_a_pair(tmp_path, train, test, difference):
    touch(tmp_path, f"train/{train}/1.jpg", "train/b/1.jpg", f"test/{test}/1.jpg", "test/b/1.jpg")
    assert problems(tmp_path) == [
        f"'{tmp_path}/test/{test}' and the training class '{tmp_path}/train/{train}' differ only in {difference}; "
        "rename one of them"
    ]


def test_classes_without_training_images_are_left_out_and_counted(tmp_path, caplog):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.txt", "val/a/1.jpg", "val/d/1.jpg")
    touch(tmp_path, *[f"test/{name}/{number}.jpg" for name in "abcd" for number in range(3)])
    with caplog.at_level("INFO", logger="longtail"):
        dataset = load(tmp_path)
    assert dataset.class_names == ("a", "b")
    assert {name: len(split) for name, split in dataset.splits.items()} == {"train": 2, "val": 1, "test": 6}
    assert [record.getMessage() for record in caplog.records] == [
        f"Left out 1 folder without images: '{tmp_path}/train/c'",
        "Left out 1 class of the val split (1 image) without training images: 'd'",
        "Left out 2 classes of the test split (6 images) without training images: 'c', 'd'",
    ]


def test_empty_classes_are_refused_by_a_setting(tmp_path):
    touch(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg", "c/1.txt", "d/@eaDir/1.jpg")
    assert load(tmp_path).class_names == ("a", "b")
    with pytest.raises(InputError) as error:
        load_source(DataConfig(name="folder", root=str(tmp_path), empty_classes="error"))
    starts = [line.split(" (.apng")[0] for line in str(error.value).splitlines()]
    assert starts == [f"'{tmp_path}/{name}' holds no images" for name in "cd"]


# ---- class folders without splits ----

COUNTS = {"many": 40, "more": 11, "two": 2, "one": 1}


@pytest.fixture
def class_folders(tmp_path):
    for name, count in COUNTS.items():
        touch(tmp_path, *[f"{name}/{i:02}.jpg" for i in range(count)])
    return tmp_path


def test_test_images_are_held_out_of_each_class(class_folders):
    dataset = load(class_folders, 0.2, seed=3)
    assert dataset.class_names == ("many", "more", "one", "two")
    assert dataset.val is None
    assert np.bincount(dataset.test.labels, minlength=4).tolist() == [8, 2, 0, 1]
    assert dataset.class_counts == [32, 9, 1, 1]
    train, test = (set(paths_and_labels(split, class_folders)) for split in (dataset.train, dataset.test))
    names = sorted(COUNTS)
    assert train | test == {(f"{name}/{i:02}.jpg", names.index(name)) for name in names for i in range(COUNTS[name])}


def test_held_out_images_depend_on_the_seed_alone(class_folders):
    first, same, other = (paths_and_labels(load(class_folders, 0.2, seed).test, class_folders) for seed in (3, 3, 4))
    assert first == same
    assert first != other
    assert first == sorted(first, key=lambda pair: (pair[1], pair[0]))


def test_held_out_images_are_those_of_hold_out(tmp_path):
    images = [f"{name}/{i:02}.jpg" for name in "ab" for i in range(10)]
    touch(tmp_path, *images)
    dataset = load(tmp_path, 0.3, seed=5)
    kept, held_out = hold_out(np.repeat([0, 1], 10), 0.3, seed=5)
    assert [name for name, _ in paths_and_labels(dataset.train, tmp_path)] == [images[i] for i in kept]
    assert [name for name, _ in paths_and_labels(dataset.test, tmp_path)] == [images[i] for i in held_out]


def test_each_class_keeps_a_training_image(class_folders):
    assert load(class_folders, 0.99).class_counts == [1, 1, 1, 1]
    assert np.bincount(load(class_folders, 0.001).test.labels, minlength=4).tolist() == [1, 1, 0, 1]


def test_class_can_have_the_name_train(tmp_path):
    touch(tmp_path, *[f"{name}/{i}.jpg" for name in ("train", "car", "ship") for i in range(5)])
    dataset = load(tmp_path)
    assert dataset.class_names == ("car", "ship", "train")
    assert dataset.class_counts == [4, 4, 4]


@pytest.mark.parametrize(
    ("names", "fraction", "facts"),
    [
        ([], 0.2, "'ROOT' has no class folders with images"),
        (["1.jpg", ".hidden/1.jpg"], 0.2, "'ROOT' has no class folders"),
        (["a/1.jpg", "a/2.jpg"], 0.2, "'ROOT' has a single class folder, 'a'"),
        (["a/1.jpg", "b/1.txt"], 0.2, "'ROOT' has a single class folder, 'a'; it must"),
        (["a/1.jpg", "b/1.jpg"], 0.2, "each class in 'ROOT' has a single image"),
        (["a/1.jpg", "a/2.jpg", "b/1.jpg"], 0.0, "data.test_fraction is 0, but 'ROOT' has no test split"),
    ],
)
def test_problem_of_class_folders_is_named(tmp_path, names, fraction, facts):
    touch(tmp_path, *names)
    (problem,) = problems(tmp_path, fraction)
    assert problem.startswith(facts.replace("ROOT", str(tmp_path)))


def test_missing_root_is_named(tmp_path):
    (problem,) = problems(tmp_path / "absent")
    assert problem.startswith(f"data.root '{tmp_path}/absent' is not a folder")


# ---- lists in folders ----

LINES = [f"{number:02},{breed}" for number, breed in enumerate("abab" * 3)]


@pytest.mark.parametrize(
    ("images", "file", "header"),
    [
        ("train/{}.jpg test1/9{}.jpg", "labels.csv", "id,breed"),  # Kaggle
        ("train/{}.jpg test/{}.jpg", "trainLabels.csv", "image,level"),  # the same names in test
        ("images/{}.png", "train.csv", "image_id,label"),
        ("images/{}.png", "images/labels.csv", "image_id,label"),
        ("{}.jpg", "metadata.csv", "file_name,label"),  # Hugging Face
        ("dataset/images/{}.jpg", "dataset/metadata.csv", "file_name,label"),
    ],
)
def test_classes_are_read_from_a_list_in_the_folder(tmp_path, caplog, images, file, header):
    touch(tmp_path, *[name.format(line[:2]) for name in images.split() for line in LINES])
    (tmp_path / file).write_text("\n".join([header, *LINES]))
    (tmp_path / "sample_submission.csv").write_text("id,breed")
    with caplog.at_level("INFO", logger="longtail"):
        dataset = load(tmp_path)
    first = images.split()[0]
    expected = [(first.format(line[:2]), "ab".index(line[-1])) for line in LINES]
    assert sorted(paths_and_labels(dataset.train, tmp_path) + paths_and_labels(dataset.test, tmp_path)) == expected
    assert dataset.class_names == ("a", "b")
    assert caplog.messages[0] == f"The images are not in class folders. Their classes are read from {file}"


def test_parts_of_images_with_one_list(tmp_path):
    touch(tmp_path, *[f"images_part_{1 + number // 6}/{number:02}.jpg" for number in range(12)])
    (tmp_path / "HAM_metadata.csv").write_text("\n".join(["lesion_id,image_id,dx", *[f"L,{line}" for line in LINES]]))
    with pytest.raises(InputError, match=r"not clear \(lesion_id, image_id, dx\); call it 'label'"):
        load(tmp_path)
    (tmp_path / "HAM_metadata.csv").write_text(
        "\n".join(["lesion_id,image_id,label", *[f"L,{line}" for line in LINES]])
    )
    dataset = load(tmp_path)
    assert len(dataset.train) + len(dataset.test) == 12
    touch(tmp_path, "images_part_2/00.jpg")
    (problem,) = problems(tmp_path)
    assert problem.startswith(f"{tmp_path}/HAM_metadata.csv:2: there are several files '00' in")


def test_lists_in_folders_of_splits(tmp_path):
    for split in ("train", "validation", "test"):
        touch(tmp_path, *[f"{split}/{line[:2]}.jpg" for line in LINES])
        lines = [line.replace(",", ".jpg,") for line in LINES]
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,label", *lines]))
    assert {name: len(split) for name, split in load(tmp_path).splits.items()} == {"train": 12, "val": 12, "test": 12}


# ---- finding images ----


def test_linked_folders_are_followed(tmp_path):
    touch(tmp_path, "elsewhere/1.jpg", "root/train/a/1.jpg", "root/test/a/1.jpg")
    (tmp_path / "root/train/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/train/a/more").symlink_to(tmp_path / "elsewhere")
    assert load(tmp_path / "root").class_counts == [2, 1]


@pytest.mark.parametrize(
    "links",
    [{"a/up": ".."}, {"a/b/up": "../.."}, {"a/up": "."}, {"a/x": "../b", "b/y": "../a"}, {"a/out": "../.."}],
    ids=["parent", "grandparent", "itself", "each other", "above the root"],
)
def test_circular_links_are_named(tmp_path, links):
    root = tmp_path / "root"
    touch(root, "a/1.jpg", "a/b/1.jpg", "b/1.jpg")
    for link, target in links.items():
        (root / link).symlink_to(target)
    with pytest.raises(InputError, match="is a link to a folder that contains it"):
        find_images_below(root)
