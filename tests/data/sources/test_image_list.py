"""List files: what is read, and all problems that they can have."""

import os
from pathlib import Path

import numpy as np
import pytest
from helpers.layouts import paths_and_labels, touch

from longtail.config.schema import DataConfig
from longtail.data.sources import load_source
from longtail.utils.errors import InputError


def write(file, *lines):
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    """Images of two classes, cat and dog, and three valid lists."""
    touch(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/my best dog.png", "cat/v.jpg", "dog/t 1.jpg")
    write(tmp_path / "train.txt", "cat/1.jpg 0", "dog/my best dog.png 1", "cat/2.jpg 0")
    write(tmp_path / "val.txt", "cat/v.jpg 0")
    write(tmp_path / "test.txt", "dog/t 1.jpg 1")
    return tmp_path


def load(root, **settings):
    lists = {f"{split}_list": f"{split}.txt" for split in ("train", "val", "test")}
    return load_source(DataConfig(name="list", root=str(root), **(lists | settings)))


def problems(root, **settings):
    with pytest.raises(InputError) as error:
        load(root, **settings)
    return str(error.value).splitlines()


def test_lists_are_read_in_order(root):
    dataset = load(root)
    assert paths_and_labels(dataset.train, root) == [("cat/1.jpg", 0), ("dog/my best dog.png", 1), ("cat/2.jpg", 0)]
    assert paths_and_labels(dataset.val, root) == [("cat/v.jpg", 0)]
    assert paths_and_labels(dataset.test, root) == [("dog/t 1.jpg", 1)]
    assert dataset.train.labels.dtype == np.int64
    assert dataset.class_names == ("cat", "dog")
    assert load(root, val_list=None).val is None


def test_blank_lines_line_ends_tabs_and_byte_order_marks_are_ignored(root):
    expected = paths_and_labels(load(root).train, root)
    lines = b"\xef\xbb\xbf\r\ncat/1.jpg   0  \r\n\r\n  dog/my best dog.png\t1\r\n./cat/2.jpg 00"
    (root / "train.txt").write_bytes(lines)
    assert paths_and_labels(load(root).train, root) == expected


def test_names_can_hold_any_letters_and_dots(root):
    touch(root, "dög/ä é.jpg", "cat/1..jpg", "do..g/..1.jpg")
    write(root / "train.txt", "cat/1.jpg 0", "dög/ä é.jpg 1", "cat/1..jpg 0", "do..g/..1.jpg 2")
    assert load(root).class_names == ("cat", "dög", "do..g")


def test_links_are_followed(root):
    (root / "link.jpg").symlink_to(root / "cat/1.jpg")
    (root / "linked").symlink_to(root / "dog")
    write(root / "train.txt", "link.jpg 0", "linked/t 1.jpg 1")
    assert len(load(root).train) == 2


# ---- names of classes ----


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["cat/1.jpg 0", "dog/t 1.jpg 0", "dog/my best dog.png 1"], ("0", "1")),  # a class with two folders
        (["a/same/1.jpg 0", "b/same/1.jpg 1"], ("0", "1")),  # two folders with the same name
        (["top.jpg 0", "other.jpg 1"], ("0", "1")),  # no folders
        (["a/same/1.jpg 0", "a/same/1.jpg 0", "dog/t 1.jpg 1"], ("same", "dog")),
    ],
)
def test_classes_have_the_names_of_their_folders_if_these_differ(root, lines, names):
    touch(root, "a/same/1.jpg", "b/same/1.jpg", "top.jpg", "other.jpg")
    write(root / "train.txt", *lines)
    assert load(root).class_names == names


def test_class_names_from_a_file(root):
    write(root / "names.txt", "Felis catus", "Canis familiaris", "", "")
    assert load(root, class_names="names.txt").class_names == ("Felis catus", "Canis familiaris")


def test_problems_of_class_names(root):
    names = root / "names.txt"
    write(names, "cat", "", "cat", "\x1b")
    number, blank, repeated, control = problems(root, class_names="names.txt")
    assert number.startswith(f"{names}: 4 names for 2 classes")
    assert blank.startswith(f"{names}:2: ''")
    assert repeated.startswith(f"{names}:3: 'cat'")
    assert control.startswith(f"{names}:4: '\\x1b'")
    names.unlink()
    (missing,) = problems(root, class_names="names.txt")
    assert missing.startswith(f"{names}: is missing")


# ---- problems ----


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("cat/1.jpg", "the label is missing"),
        ("my cat.jpg", "'cat.jpg' is not a label"),
        *[(f"cat/1.jpg {label}", f"'{label}' is not a label") for label in ("-1", "1.0", "٣", "²", "9" * 20)],
        *[(f"{path} 0", f"'{path}' leads out of data.root") for path in ("/cat/1.jpg", "cat/../../1.jpg", "..")],
        *[(f"{path} 0", f"there is no file '{path}'") for path in ("cat/3.jpg", "bird/1.jpg", "cat")],
        (f"{'x' * 300} 0", f"there is no file '{'x' * 200}...'"),
    ],
)
@pytest.mark.parametrize("file", ["train.txt", "val.txt", "test.txt"])
def test_bad_line_is_named(root, file, line, fact):
    with (root / file).open("a", encoding="utf-8") as end:
        end.write(f"\n{line}\n")
    number = 5 if file == "train.txt" else 3
    (problem,) = problems(root)
    assert problem.startswith(f"{root / file}:{number}: {fact}")


def test_paths_outside_are_allowed_by_a_setting(root):
    write(root / "train.txt", f"{root}/cat/1.jpg 0", f"../{root.name}/dog/t 1.jpg 1")
    assert all("allow_outside_root" in problem for problem in problems(root))
    assert len(load(root, allow_outside_root=True).train) == 2


def test_unreadable_list_is_named(root):
    test, train = root / "test.txt", root / "train.txt"
    test.write_bytes(b"cat/1.jpg 0\ncat/\xff.jpg 0\n")
    (problem,) = problems(root)
    assert problem.startswith(f"{test}:2: is not UTF-8")
    test.unlink()
    (problem,) = problems(root)
    assert problem.startswith(f"{test}: is missing")
    os.mkfifo(test)
    (problem,) = problems(root)
    assert "not a file" in problem
    (problem,) = problems(root, train_list=".", test_list="val.txt")
    assert problem.startswith(f"{root}: ")
    write(train, "", " ")
    (problem,) = problems(root, test_list="val.txt")
    assert problem.startswith(f"{train}: the list is empty")


def test_missing_root_is_named():
    (problem,) = problems(Path("no/such/folder"))
    assert problem.startswith("data.root 'no/such/folder' is not a folder")


def test_label_without_training_images_is_named(root):
    write(root / "val.txt", "cat/v.jpg 0", "", "cat/v.jpg 7", "cat/v.jpg 7")
    write(root / "test.txt", "cat/v.jpg 2")
    lines = [(root / "val.txt", 3, 7), (root / "val.txt", 4, 7), (root / "test.txt", 1, 2)]
    assert problems(root) == [f"{file}:{line}: no training image has label {label}" for file, line, label in lines]


def test_gaps_in_training_labels_are_named(root):
    train = root / "train.txt"
    write(train, "cat/1.jpg 0", "cat/2.jpg 999999999", "cat/2.jpg 1", "cat/2.jpg 5")
    (problem,) = problems(root)
    assert problem.startswith(f"{train}: no training image has label 2;")
    assert "999999999" in problem
    write(train, "cat/1.jpg 0", "cat/2.jpg 0")
    (problem,) = problems(root, test_list="val.txt")
    assert problem.startswith(f"{train}: no training image has label 1;")


def test_all_problems_are_in_one_error(root):
    train, val, test, names = (root / f"{name}.txt" for name in ("train", "val", "test", "names"))
    write(train, "cat/1.jpg 0", "cat/1.jpg", "dog/t 1.jpg 1", "cat/9.jpg 1", "../x.jpg 1", "cat/1.jpg 3")
    val.write_bytes(b"\xff")
    write(test, "cat/1.jpg one", "cat/1.jpg 8", "cat/8.jpg 1")
    write(names, "a", "a", "b", "c")
    starts = [line.split(" ")[0] for line in problems(root, class_names="names.txt")]
    expected = [f"{train}:2:", f"{train}:4:", f"{train}:5:", f"{val}:1:", f"{test}:1:", f"{test}:3:"]
    assert starts == [*expected, f"{train}:", f"{test}:2:", f"{names}:2:"]


def test_long_list_looks_once_into_each_folder(tmp_path, monkeypatch):
    num_classes, per_class, repeats = 10, 20, 100
    names = [[f"class{c}/image {i}.jpg" for i in range(per_class)] for c in range(num_classes)]
    for of_class in names:
        touch(tmp_path, *of_class)
    lines = [f"{name} {label}" for label, of_class in enumerate(names) for name in of_class] * repeats
    write(tmp_path / "train.txt", *lines)
    write(tmp_path / "test.txt", lines[0])
    looks = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: looks.append(folder) or scandir(folder))
    monkeypatch.setattr(os.path, "isfile", lambda path: pytest.fail(f"looked for {path}"))
    dataset = load(tmp_path, val_list=None)
    assert sorted(looks) == [tmp_path / f"class{c}" for c in range(num_classes)]
    assert dataset.class_counts == [per_class * repeats] * num_classes
    assert dataset.train.paths[-1] == tmp_path / names[-1][-1]


# ---- published lists ----


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("imagenet-lt", ("ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt")),
        ("inaturalist2018", ("iNaturalist18_train.txt", None, "iNaturalist18_val.txt")),
        ("places-lt", ("Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt")),
    ],
)
def test_published_lists(tmp_path, name, lists):
    config = DataConfig(name=name, root=str(tmp_path))
    missing = [file for file in lists if file]
    for split, file in zip(("train", "val", "test"), lists, strict=True):
        touch(tmp_path, *[f"{split}/{label}/1.jpg" for label in "ab"])
        if file is not None:
            with pytest.raises(InputError) as error:
                load_source(config)
            assert str(error.value).endswith(f"missing: {', '.join(missing)}")
            write(tmp_path / missing.pop(0), f"{split}/a/1.jpg 0", f"{split}/b/1.jpg 1")
    dataset = load_source(config)
    assert (dataset.val is None) == (lists[1] is None)
    for split in ("train", "val", "test"):
        if images := getattr(dataset, split):
            assert paths_and_labels(images, tmp_path) == [(f"{split}/a/1.jpg", 0), (f"{split}/b/1.jpg", 1)]
    assert dataset.class_names == ("a", "b")
