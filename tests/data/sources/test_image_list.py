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
    (bad,) = [line for line in problems(root, class_names="names.txt") if line.startswith(str(names))]
    assert bad == (
        f"{names}:2: '' is blank, not printable, or the name of another class; the same in lines 3 (''cat''), "
        "4 (''\\x1b'')"
    )
    write(names, "cat")
    (number,) = problems(root, class_names="names.txt")
    assert number.startswith(f"{root}/train.txt: data.class_names has 1 name for 2 classes;")
    names.unlink()
    (missing,) = problems(root, class_names="names.txt")
    assert missing.startswith(f"{names}: is missing")


# ---- problems ----


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ("cat/1.jpg", "the label is missing in 'cat/1.jpg'"),
        ("my cat.jpg", "the label is missing in 'my cat.jpg'"),
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
    assert problems(root) == [
        f"{root}/val.txt:3: no training image has label 7; the same in line 4 ('7')",
        f"{root}/test.txt:1: no training image has label 2",
    ]


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
    expected = [f"{train}:2:", f"{train}:4:", f"{train}:5:", f"{val}:1:", f"{test}:3:", f"{names}:2:", f"{test}:1:"]
    assert starts == [*expected, f"{train}:"]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (["x.jpg 1"], "3: there is no file 'x.jpg' in 'ROOT' (data.root)"),
        (["x.jpg 1", "y.jpg 0"], "3: there is no file 'x.jpg' in 'ROOT' (data.root); the same in line 4 ('y.jpg')"),
        (
            [f"{number}.jpg 1" for number in range(100)],
            "3: there is no file '0.jpg' in 'ROOT' (data.root); the same in lines 4 ('1.jpg'), 5 ('2.jpg') and 97 more",
        ),
    ],
)
def test_many_bad_lines_of_a_kind_are_one_line(root, bad, text):
    write(root / "train.txt", "cat/1.jpg 0", "dog/t 1.jpg 1", *bad)
    assert problems(root) == [f"{root}/train.txt:{text.replace('ROOT', str(root))}"]


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


# ---- formats of lists ----

CSV = ["cat/1.jpg,cat", "dog/my best dog.png,dog", "cat/2.jpg,cat", "dog/t 1.jpg,dog"]
IMAGES = ["cat/1.jpg", "dog/my best dog.png", "cat/2.jpg", "dog/t 1.jpg"]


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (CSV, ("cat", "dog")),
        (["file_name,label", *CSV], ("cat", "dog")),
        (["id,breed", *CSV], ("cat", "dog")),
        (["whatever,else", *CSV], ("cat", "dog")),
        ([line.replace(",", "\t") for line in CSV], ("cat", "dog")),
        ([line.replace(",", ";") for line in CSV], ("cat", "dog")),
        ([f'"{line.replace(",", chr(34) + "," + chr(34))}"' for line in CSV], ("cat", "dog")),
        ([line.replace(",", ", ") for line in CSV], ("cat", "dog")),
        (["# made by hand", "", *CSV], ("cat", "dog")),
        (["# made by hand, in May", "#Checked", "file,label", "#", *CSV, "# cat/v.jpg,cat"], ("cat", "dog")),
        # The label first, also with numbers.
        (["label,path", *[",".join(line.split(",")[::-1]) for line in CSV]], ("cat", "dog")),
        ([",".join(line.split(",")[::-1]) for line in CSV], ("cat", "dog")),
        (["0 cat/1.jpg", "1 dog/my best dog.png", "0 cat/2.jpg", "1 dog/t 1.jpg"], ("cat", "dog")),
        (["# by hand", "0 cat/1.jpg", "1 dog/my best dog.png", "#2", "0 cat/2.jpg", "1 dog/t 1.jpg"], ("cat", "dog")),
        # Names that begin with the sign of comments.
        ([f"#{','.join(line.split(',')[::-1])}" for line in CSV], ("#cat", "#dog")),
        (["label,image", *[f"#{','.join(line.split(',')[::-1])}" for line in CSV]], ("#cat", "#dog")),
        (["#,image,label", *[f"{number},{line}" for number, line in enumerate(CSV)]], ("cat", "dog")),
        (["#image,label", *CSV], ("cat", "dog")),
        # Numbers from 1, and names of classes with spaces.
        (["cat/1.jpg 1", "dog/my best dog.png 2", "cat/2.jpg 1", "dog/t 1.jpg 2"], ("cat", "dog")),
        ([f"{line} s. l." for line in CSV], ("cat s. l.", "dog s. l.")),
        # Further columns, and the index that pandas writes.
        (["width,file,height,class,score", *[f"8,{line.replace(',', ',9,')},0.5" for line in CSV]], ("cat", "dog")),
        ([",image,target", *[f"{number},{line}" for number, line in enumerate(CSV)]], ("cat", "dog")),
        # Backslashes of Windows, and absolute paths in the root.
        ([line.replace("/", "\\") for line in CSV], ("cat", "dog")),
        ([f"ROOT/{line}" for line in CSV], ("cat", "dog")),
    ],
    ids=str,
)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_formats_of_lists(root, lines, names, line_end):
    text = line_end.join([*lines, ""]).replace("ROOT", str(root))
    (root / "labels.csv").write_text(text, newline="")
    dataset = load(root, train_list="labels.csv", val_list=None, test_list="labels.csv")
    assert paths_and_labels(dataset.train, root) == list(zip(IMAGES, [0, 1, 0, 1], strict=True))
    assert dataset.class_names == names


@pytest.mark.parametrize("folder", ["", "lists/", "train/"])
@pytest.mark.parametrize("suffix", ["", ".jpg"])
def test_files_of_a_list_are_found_next_to_it(tmp_path, folder, suffix):
    """Kaggle writes identifiers, without their folder and extension."""
    names = ["00a1", "00b2", "00c3", "00d4"]
    touch(tmp_path, *[f"{'train' if folder != 'lists/' else 'lists/pictures'}/{name}.jpg" for name in names])
    touch(tmp_path, "test1/00e5.jpg")
    write(
        tmp_path / folder / "labels.csv", "id,breed", *[f"{n}{suffix},{b}" for n, b in zip(names, "abab", strict=True)]
    )
    dataset = load(tmp_path, train_list=f"{folder}labels.csv", val_list=None, test_list=None)
    assert (dataset.class_counts, len(dataset.test), dataset.class_names) == ([1, 1], 2, ("a", "b"))


def test_files_of_a_list_are_in_one_place(root):
    """The missing 1.jpg is not cat/1.jpg."""
    write(root / "labels.csv", *CSV, "1.jpg,dog")
    (problem,) = problems(root, train_list="labels.csv", val_list=None, test_list=None)
    assert problem.startswith(f"{root}/labels.csv:5: there is no file '1.jpg'")


def test_one_list_has_its_test_images_held_out(root, caplog):
    touch(root, *[f"{name}/{number:02}.jpg" for name in ("cat", "dog") for number in range(20)])
    write(root / "all.csv", *[f"{name}/{number:02}.jpg,{name}" for name in ("cat", "dog") for number in range(20)])
    with caplog.at_level("INFO", logger="longtail"):
        dataset = load(root, train_list="all.csv", val_list=None, test_list=None, test_fraction=0.25)
    assert dataset.class_counts == [15, 15]
    assert np.bincount(dataset.test.labels).tolist() == [5, 5]
    assert caplog.messages == [f"There is no list of test images, so they are held out of '{root}/all.csv'"]


@pytest.mark.parametrize(
    ("header", "words", "lists", "numbers"),
    [
        ("file_name,label,split", ("train", "val", "test"), {"test_list": None}, (2, 1, 1)),
        ("file_name,label,split", ("training", "validation", "testing"), {"test_list": None}, (2, 1, 1)),
        ("file_name,label,subset", ("Train", "dev", "eval"), {"test_list": None}, (2, 1, 1)),
        (None, ("train", "val", "test"), {"test_list": None}, (2, 1, 1)),
        # Val is the test split if there is no other.
        ("file_name,label,split", ("train", "train", "val"), {"test_list": None}, (3, 0, 1)),
        # Two lists that are the same file.
        ("file_name,label,split", ("train", "val", "test"), {"test_list": "all.csv"}, (2, 0, 1)),
    ],
)
def test_list_with_a_column_of_splits(root, header, words, lists, numbers):
    train, val, test = words
    splits = [train, train, val, test]
    write(root / "all.csv", *([header] if header else []), *[f"{a},{b}" for a, b in zip(CSV, splits, strict=True)])
    dataset = load(root, train_list="all.csv", val_list=None, **lists)
    assert tuple(len(dataset.splits.get(name, ())) for name in ("train", "val", "test")) == numbers
    assert paths_and_labels(dataset.test, root) == [("dog/t 1.jpg", 1)]


@pytest.mark.parametrize(
    ("lines", "fact"),
    [
        (
            ["file_name,color,shape", *[f"{line},x" for line in CSV]],
            "(file_name, color, shape); call it 'label' in line 1",
        ),
        ([f"{line},x" for line in CSV], "which of its columns is the class is not clear (1, 2, 3)"),
        (
            ["file,label,split", *[f"{line},{n}" for n, line in enumerate(CSV)]],
            "labels.csv:2: '0' is not a split; it must",
        ),
        ([*CSV, "cat/1.jpg,"], "labels.csv:5: the label is missing in 'cat/1.jpg'"),
        ([*CSV, '"cat/1.jpg,cat', "x"], "labels.csv:5: the label is missing in 'cat/1.jpg,cat\\nx"),
        (["cat/1.jpg,cat", "cat/2.jpg,cat"], "labels.csv: all labels are 'cat'; at least two classes are needed"),
        (["cat/9.jpg,cat", "cat/8.jpg,dog"], "labels.csv:1: there is no file 'cat/9.jpg' in "),
    ],
)
def test_problem_of_a_table_is_named(root, lines, fact):
    write(root / "labels.csv", *lines)
    assert any(fact in line for line in problems(root, train_list="labels.csv", val_list=None, test_list=None))


def test_classes_by_name_in_test_lists(root, caplog):
    write(root / "train.txt", *CSV)
    write(root / "test.txt", "cat/1.jpg,cat", "cat/2.jpg,bird", "cat/v.jpg,bird")
    with caplog.at_level("INFO", logger="longtail"):
        assert len(load(root, val_list=None).test) == 1
    assert caplog.messages == ["Left out 1 class of the test split (2 images) without training images: 'bird'"]
    write(root / "test.txt", "cat/1.jpg,cat", "cat/2.jpg,Dog")
    (problem,) = problems(root, val_list=None)
    assert problem.startswith(
        f"{root}/test.txt:2: 'Dog' and the training class 'dog' differ only in upper and lower case"
    )
    assert len(caplog.messages) == 1
    write(root / "names.txt", "dog", "cat")
    write(root / "test.txt", "cat/1.jpg,cat")
    assert load(root, val_list=None, class_names="names.txt").class_names == ("dog", "cat")
    write(root / "names.txt", "dog", "horse")
    (problem,) = problems(root, val_list=None, class_names="names.txt")
    assert problem.startswith(f"{root}/train.txt:1: 'cat' is not in data.class_names; the same in line 3 ('cat')")


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
