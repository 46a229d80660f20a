"""List files and folders: what is read, and everything that can be wrong with them."""

from pathlib import Path

import numpy as np
import pytest

from longtail.data.imbalance import hold_out
from longtail.data.sources import image_files, image_list
from longtail.data.sources.image_folder import folder
from longtail.data.sources.image_list import list_files, published
from longtail.utils.errors import InputError


def touch(root: Path, *names: str) -> None:
    """Empty files: only their names matter here."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def write(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def relative(split, root: Path) -> list[tuple[str, int]]:
    return [
        (path.relative_to(root).as_posix(), label)
        for path, label in zip(split.paths, split.labels.tolist(), strict=True)
    ]


def problems(function, *args) -> list[str]:
    with pytest.raises(InputError) as refused:
        function(*args)
    return str(refused.value).splitlines()


def only_problem(function, *args) -> str:
    (problem,) = problems(function, *args)
    return problem


# ---- list files ----


@pytest.fixture
def lists(tmp_path):
    """Two classes, cat and dog, in three sound lists; returns the arguments of list_files."""
    touch(tmp_path, "cat/1.jpg", "cat/2.jpg", "dog/my best dog.png", "cat/v.jpg", "dog/t 1.jpg")
    train = write(tmp_path / "train.txt", "cat/1.jpg 0", "dog/my best dog.png 1", "cat/2.jpg 0")
    val = write(tmp_path / "val.txt", "cat/v.jpg 0")
    test = write(tmp_path / "test.txt", "dog/t 1.jpg 1")
    return tmp_path, train, val, test


def test_lists_are_read_in_order_with_spaces_in_paths(lists):
    root, *_ = lists
    dataset = list_files(*lists)
    assert relative(dataset.train, root) == [("cat/1.jpg", 0), ("dog/my best dog.png", 1), ("cat/2.jpg", 0)]
    assert relative(dataset.val, root) == [("cat/v.jpg", 0)]
    assert relative(dataset.test, root) == [("dog/t 1.jpg", 1)]
    assert dataset.train.labels.dtype == np.int64
    assert dataset.class_names == ("cat", "dog")
    assert dataset.class_counts == [2, 1]


def test_validation_list_may_be_absent(lists):
    root, train, _, test = lists
    assert list_files(root, train, None, test).val is None


def test_blank_lines_ends_of_lines_tabs_and_marks_do_not_matter(lists):
    root, train, val, test = lists
    expected = relative(list_files(*lists).train, root)
    train.write_bytes(b"\xef\xbb\xbf\r\ncat/1.jpg   0  \r\n\r\n  dog/my best dog.png\t1\r\n./cat/2.jpg 00")
    assert relative(list_files(root, train, val, test).train, root) == expected


def test_names_outside_ascii(lists):
    root, train, val, test = lists
    touch(root, "dög/ä é.jpg")
    write(train, "cat/1.jpg 0", "dög/ä é.jpg 1")
    assert list_files(root, train, val, test).class_names == ("cat", "dög")


def test_linked_pictures_and_folders_count_as_files(lists):
    root, train, val, test = lists
    (root / "link.jpg").symlink_to(root / "cat/1.jpg")
    (root / "linked").symlink_to(root / "dog")
    write(train, "link.jpg 0", "linked/t 1.jpg 1")
    assert len(list_files(root, train, val, test).train) == 2


def test_classes_are_numbered_where_folders_do_not_name_them(lists):
    root, train, val, test = lists
    touch(root, "a/same/1.jpg", "b/same/1.jpg", "top.jpg", "other.jpg")
    for lines in (
        ["cat/1.jpg 0", "dog/t 1.jpg 0", "dog/my best dog.png 1"],  # a class in two folders
        ["a/same/1.jpg 0", "b/same/1.jpg 1"],  # two classes in folders of one name
        ["top.jpg 0", "other.jpg 1"],  # no folders
    ):
        write(train, *lines)
        assert list_files(root, train, val, test).class_names == ("0", "1")
    write(train, "a/same/1.jpg 0", "a/same/1.jpg 0", "dog/t 1.jpg 1")
    assert list_files(root, train, val, test).class_names == ("same", "dog")


def test_class_names_from_a_file(lists):
    names = write(lists[0] / "names.txt", "Felis catus", "Canis familiaris", "", "")
    assert list_files(*lists, names).class_names == ("Felis catus", "Canis familiaris")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("cat/1.jpg", "the label is missing; a line is 'path label', the label a whole number from 0"),
        ("my cat.jpg", "'cat.jpg' is not a label; a line is 'path label', the label a whole number from 0"),
        ("cat/1.jpg -1", "'-1' is not a label; a line is 'path label', the label a whole number from 0"),
        ("cat/1.jpg 1.0", "'1.0' is not a label; a line is 'path label', the label a whole number from 0"),
        ("cat/1.jpg ٣", "'٣' is not a label; a line is 'path label', the label a whole number from 0"),
        ("cat/1.jpg ²", "'²' is not a label; a line is 'path label', the label a whole number from 0"),
        ("cat/1.jpg 99999999999999999999", "'99999999999999999999' is not a label; a line is 'path label', the label a "
         "whole number from 0"),
        ("/cat/1.jpg 0", "'/cat/1.jpg' leads out of data.root; paths must start and stay there (or set "
         "data.allow_outside_root)"),
        ("cat/../../1.jpg 0", "'cat/../../1.jpg' leads out of data.root; paths must start and stay there (or set "
         "data.allow_outside_root)"),
        ("cat/3.jpg 0", "there is no file 'cat/3.jpg' in 'ROOT' (data.root)"),
        ("bird/1.jpg 0", "there is no file 'bird/1.jpg' in 'ROOT' (data.root)"),
        ("cat 0", "there is no file 'cat' in 'ROOT' (data.root)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("file", [1, 2, 3])
def test_wrong_line_is_named(lists, file, line, problem):
    with lists[file].open("a", encoding="utf-8") as end:
        end.write(f"\n{line}\n")
    number = 5 if file == 1 else 3
    assert only_problem(list_files, *lists) == f"{lists[file]}:{number}: " + problem.replace("ROOT", str(lists[0]))


def test_names_that_only_contain_two_dots_are_fine(lists):
    root, train, val, test = lists
    touch(root, "cat/1..jpg", "do..g/..1.jpg")
    write(train, "cat/1..jpg 0", "do..g/..1.jpg 1")
    assert len(list_files(root, train, val, test).train) == 2


def test_list_file_that_cannot_be_read_is_named(lists):
    root, train, val, test = lists
    test.write_bytes(b"cat/1.jpg 0\ncat/\xff.jpg 0\n")
    assert only_problem(list_files, *lists) == f"{test}:2: not UTF-8 text; save the file in that encoding"
    test.unlink()
    right = "it must be a text file, one entry a line"
    assert only_problem(list_files, *lists) == f"{test}: No such file or directory; {right}"
    assert only_problem(list_files, root, root, val, val) == f"{root}: Is a directory; {right}"
    write(train, "", " ")
    assert only_problem(list_files, root, train, val, val) == f"{train}: the list is empty; a line is 'path label'"


def test_root_that_is_no_folder_is_named(lists):
    _, *rest = lists
    absent = Path("no/such/folder")
    assert only_problem(list_files, absent, *rest).startswith(f"data.root '{absent}' is not a folder; it must be")


def test_label_that_training_lacks_is_named_once(lists):
    _, _, val, test = lists
    write(val, "cat/v.jpg 0", "", "cat/v.jpg 7", "cat/v.jpg 7", "cat/v.jpg 7")
    write(test, "cat/v.jpg 2")
    assert problems(list_files, *lists) == [
        f"{val}:3: no training image has label 7 (and on 2 more lines); every class needs some",
        f"{test}:1: no training image has label 2; every class needs some",
    ]


def test_classes_without_training_images_are_named(lists):
    root, train, val, _ = lists
    write(train, "cat/1.jpg 2", "cat/2.jpg 999999999", "cat/2.jpg 3", "cat/2.jpg 5")
    write(val, "cat/1.jpg 3")
    assert only_problem(list_files, root, train, val, val) == (
        f"{train}: no training image has label 0 to 1, 4, 6 to 999999998; labels must go from 0 to the number of "
        "classes - 1 without a gap (the largest is 999999999)"
    )
    write(train, "cat/1.jpg 0", "cat/2.jpg 0")
    write(val, "cat/1.jpg 0")
    expected = f"{train}: every label is 0; at least two classes are needed"
    assert only_problem(list_files, root, train, val, val) == expected


def test_wrong_class_names_are_named(lists):
    names = write(lists[0] / "names.txt", "cat", "", "cat")
    assert problems(list_files, *lists, names) == [
        f"{names}: 3 names for 2 classes; there must be one name a line for each",
        f"{names}:2: the line is blank; it must name class 1",
        f"{names}:3: 'cat' is on line 1 too; names must differ",
    ]
    names.unlink()
    assert only_problem(list_files, *lists, names).startswith(f"{names}: No such file or directory")


def test_all_problems_are_told_at_once(lists):
    root, train, val, test = lists
    write(train, "cat/1.jpg 0", "cat/1.jpg", "dog/t 1.jpg 1", "cat/9.jpg 1", "../x.jpg 1", "cat/1.jpg 3")
    val.write_bytes(b"\xff")
    write(test, "cat/1.jpg one", "cat/1.jpg 8", "cat/8.jpg 1")
    names = write(root / "names.txt", "a", "a", "b", "c")
    starts = [line.split(" ")[0] for line in problems(list_files, root, train, val, test, names)]
    expected = [f"{train}:2:", f"{train}:4:", f"{train}:5:", f"{val}:1:", f"{test}:1:", f"{test}:3:"]
    assert starts == [*expected, f"{train}:", f"{test}:2:", f"{names}:2:"]


def test_twenty_problems_are_shown(lists):
    test = lists[-1]
    write(test, *[f"cat/absent{i}.jpg 0" for i in range(20)])
    assert len(problems(list_files, *lists)) == 20
    write(test, *[f"cat/absent{i}.jpg 0" for i in range(57)])
    shown = problems(list_files, *lists)
    assert shown[18].startswith(f"{test}:19: ")
    assert shown[19:] == ["and 38 more"]


def test_long_list_looks_once_into_each_folder(tmp_path, monkeypatch):
    """200,000 lines; nothing asks the disk once a line."""
    num_classes, per_class, repeats = 10, 20, 1000
    names = [[f"class{c}/picture {i}.jpg" for i in range(per_class)] for c in range(num_classes)]
    for of_class in names:
        touch(tmp_path, *of_class)
    lines = [f"{name} {label}" for label, of_class in enumerate(names) for name in of_class] * repeats
    train = write(tmp_path / "train.txt", *lines)
    test = write(tmp_path / "test.txt", lines[0])
    looks = []
    scandir = image_list.os.scandir
    monkeypatch.setattr(image_list.os, "scandir", lambda where: looks.append(where) or scandir(where))
    monkeypatch.setattr(Path, "is_file", lambda path: pytest.fail(f"asked for {path}"))
    dataset = list_files(tmp_path, train, None, test)
    assert sorted(looks) == [tmp_path / f"class{c}" for c in range(num_classes)]
    assert dataset.class_counts == [per_class * repeats] * num_classes
    assert dataset.train.paths[-1] == tmp_path / names[-1][-1]


# ---- published lists ----


@pytest.mark.parametrize(
    ("name", "train", "val", "test"),
    [
        ("imagenet-lt", "ImageNet_LT_train.txt", "ImageNet_LT_val.txt", "ImageNet_LT_test.txt"),
        ("inaturalist2018", "iNaturalist18_train.txt", None, "iNaturalist18_val.txt"),
        ("places-lt", "Places_LT_train.txt", "Places_LT_val.txt", "Places_LT_test.txt"),
    ],
)
def test_published_lists_lie_in_root(tmp_path, name, train, val, test):
    needed = [file for file in (train, val, test) if file]
    problem = only_problem(published, name, tmp_path)
    assert problem.startswith(f"{name} needs {', '.join(needed)} in '{tmp_path}' (data.root)")
    assert problem.endswith(f"missing: {', '.join(needed)}")

    touch(tmp_path, *[f"{part}/{c}/1.jpg" for part in ("train", "val", "test") for c in "ab"])
    for part, file in (("train", train), ("val", val), ("test", test)):
        if file is not None:
            assert problem.split("missing: ")[1].split(", ")[0] == file
            write(tmp_path / file, f"{part}/a/1.jpg 0", f"{part}/b/1.jpg 1")
            if file != test:
                problem = only_problem(published, name, tmp_path)
    dataset = published(name, tmp_path)
    assert relative(dataset.train, tmp_path) == [("train/a/1.jpg", 0), ("train/b/1.jpg", 1)]
    assert relative(dataset.test, tmp_path) == [("test/a/1.jpg", 0), ("test/b/1.jpg", 1)]
    assert (dataset.val is None) == (val is None)
    if dataset.val is not None:
        assert relative(dataset.val, tmp_path) == [("val/a/1.jpg", 0), ("val/b/1.jpg", 1)]
    assert dataset.class_names == ("a", "b")


# ---- one folder per class, in parts ----


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_folder_with_parts(tmp_path, val):
    touch(tmp_path, "train/b/2.jpg", "train/b/1.PNG", "train/a/x/y/1.jpeg", "train/a/1.webp", "train/B/1.jpg")
    touch(tmp_path, f"{val}/b/v.jpg", "test/a/t.jpg", "test/b/t.gif")
    touch(tmp_path, "train/a/notes.txt", "train/.cache/1.jpg", "train/a/._1.jpg", "train/a/.x/1.jpg", ".git/a/1.jpg")
    touch(tmp_path, "train/loose.jpg", "readme.txt", "extra/1.jpg")
    dataset = folder(tmp_path, 0.2, 0)
    assert dataset.class_names == ("B", "a", "b")
    assert relative(dataset.train, tmp_path) == [
        ("train/B/1.jpg", 0),
        ("train/a/1.webp", 1),
        ("train/a/x/y/1.jpeg", 1),
        ("train/b/1.PNG", 2),
        ("train/b/2.jpg", 2),
    ]
    assert relative(dataset.val, tmp_path) == [(f"{val}/b/v.jpg", 2)]
    assert relative(dataset.test, tmp_path) == [("test/a/t.jpg", 1), ("test/b/t.gif", 2)]


def test_validation_folder_may_be_absent(tmp_path):
    touch(tmp_path, "Train/a/1.jpg", "Train/b/1.jpg", "TEST/a/1.jpg")
    assert folder(tmp_path, 0.2, 0).val is None


def test_linked_folders_are_followed(tmp_path):
    touch(tmp_path, "elsewhere/1.jpg", "root/train/a/1.jpg", "root/test/a/1.jpg")
    (tmp_path / "root/train/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root/train/a/more").symlink_to(tmp_path / "elsewhere")
    assert folder(tmp_path / "root", 0.2, 0).class_counts == [2, 1]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg"], "'ROOT' has train/ and val/ but no test/ folder; add one"),
        (["train/a/1.jpg", "train/b/1.jpg"], "'ROOT' has train/ but no test/ folder; add one"),
        (["train/a/1.jpg", "valid/b/1.jpg", "x/1.jpg"], "'ROOT' has train/ and valid/ but no test/ folder; add one"),
        (["test/a/1.jpg", "val/a/1.jpg"], "'ROOT' has test/ and val/ but no train/ folder; add one"),
        (["test/a/1.jpg", "cat/1.jpg", "dog/1.jpg"], "'ROOT' has test/ but no train/ folder; add one"),
        (["train/a/1.jpg", "val/a/1.jpg", "valid/a/1.jpg", "test/a/1.jpg"],
         "'ROOT/val' and 'ROOT/valid' are both the val part; keep one of them"),
        (["train/1.jpg", "test/a/1.jpg"], "'ROOT/train' has no folders of classes; it must hold one folder of pictures "
         "per class"),
        (["train/a/1.jpg", "test/a/1.jpg"], "'ROOT/train' has a single class folder, 'a'; at least two are needed"),
        (["train/a/1.jpg", "train/b/1.txt", "test/a/1.jpg"], "'ROOT/train/b' holds no picture (.apng, .avif, "),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/c/1.jpg"],
         "'ROOT/test/c' is no class of training; every class needs training images"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "val/a/1.jpg", "val/c/1.jpg"],
         "'ROOT/val/c' is no class of training; every class needs training images"),
        (["train/a/1.jpg", "train/b/1.jpg", "test/1.jpg"],
         "'ROOT/test' holds no picture in any folder of a class; remove it or fill it"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_named(tmp_path, names, problem):
    touch(tmp_path, *names)
    assert only_problem(folder, tmp_path, 0.2, 0).startswith(problem.replace("ROOT", str(tmp_path)))


def test_all_problems_of_the_parts_are_told_at_once(tmp_path):
    touch(tmp_path, "train/a/1.jpg", "train/b/1.txt", "train/c/1.txt", "val/d/1.jpg", "val/a/1.jpg", "test/e/1.jpg")
    starts = [line.split("'")[1] for line in problems(folder, tmp_path, 0.2, 0)]
    assert starts == [f"{tmp_path}/{name}" for name in ("train/b", "train/c", "val/d", "test/e", "test")]


# ---- one folder per class, without parts ----

COUNTS = {"many": 40, "more": 11, "two": 2, "one": 1}


def test_an_accent_written_in_another_way_is_told(tmp_path):
    """As an archive from a Mac has it: the two names look the same."""
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    touch(tmp_path, f"train/{composed}/1.jpg", "train/b/1.jpg", f"test/{decomposed}/1.jpg", "test/b/1.jpg")
    said = only_problem(folder, tmp_path, 0.2, 0)
    assert said.startswith(f"'{tmp_path}/test/{decomposed}' is no class of training; the one that looks the same")


def test_what_is_left_out_is_told(tmp_path, caplog):
    pictures = ["train/a/1.jpg", "train/b/1.JFIF", "test/a/1.avif", "test/b/1.png"]
    others = ["train/a/1.heic", "train/a/2.heic", "train/notes.txt", "train/2.jpg", "train/3.jpg", "old/c/1.jpg"]
    touch(tmp_path, *pictures, *others)
    with caplog.at_level("INFO", logger="longtail"):
        found = folder(tmp_path, 0.2, 0)
    assert relative(found.train, tmp_path) == [("train/a/1.jpg", 0), ("train/b/1.JFIF", 1)]
    assert relative(found.test, tmp_path) == [("test/a/1.avif", 0), ("test/b/1.png", 1)]
    assert [record.getMessage() for record in caplog.records] == [
        f"'{tmp_path}': left out, beside train/ and test/: old",
        f"'{tmp_path}/train': 2 files are left out, no pictures by name: 2 .heic",
        f"'{tmp_path}/train': 2 pictures are left out, in no folder of a class",
    ]


@pytest.fixture
def plain(tmp_path):
    for name, count in COUNTS.items():
        touch(tmp_path, *[f"{name}/{i:02}.jpg" for i in range(count)])
    return tmp_path


def test_part_of_each_class_is_held_out(plain):
    dataset = folder(plain, 0.2, seed=3)
    assert dataset.class_names == ("many", "more", "one", "two")
    assert dataset.val is None
    assert np.bincount(dataset.test.labels, minlength=4).tolist() == [8, 2, 0, 1]
    assert dataset.class_counts == [32, 9, 1, 1]
    train, test = set(relative(dataset.train, plain)), set(relative(dataset.test, plain))
    assert not train & test
    everything = {
        (f"{name}/{i:02}.jpg", label) for label, name in enumerate(sorted(COUNTS)) for i in range(COUNTS[name])
    }
    assert train | test == everything


def test_held_out_part_depends_on_the_seed_alone(plain):
    first, again, other = (relative(folder(plain, 0.2, seed).test, plain) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert first == sorted(first, key=lambda pair: (pair[1], pair[0]))


def test_held_out_part_is_that_of_hold_out_where_this_takes_any(tmp_path):
    touch(tmp_path, *[f"{name}/{i:02}.jpg" for name in "ab" for i in range(10)])
    dataset = folder(tmp_path, 0.3, seed=5)
    kept, held = hold_out(np.repeat([0, 1], 10), 0.3, seed=5)
    everything = [f"{name}/{i:02}.jpg" for name in "ab" for i in range(10)]
    assert [name for name, _ in relative(dataset.train, tmp_path)] == [everything[i] for i in kept]
    assert [name for name, _ in relative(dataset.test, tmp_path)] == [everything[i] for i in held]


def test_class_keeps_a_training_image_whatever_the_fraction(plain):
    assert folder(plain, 0.99, 0).class_counts == [1, 1, 1, 1]
    assert np.bincount(folder(plain, 0.001, 0).test.labels, minlength=4).tolist() == [1, 1, 0, 1]


def test_class_may_be_called_train(tmp_path):
    touch(tmp_path, *[f"{name}/{i}.jpg" for name in ("train", "car", "ship") for i in range(5)])
    dataset = folder(tmp_path, 0.2, 0)
    assert dataset.class_names == ("car", "ship", "train")
    assert dataset.class_counts == [4, 4, 4]


@pytest.mark.parametrize(
    ("names", "fraction", "problem"),
    [
        ([], 0.2, "'ROOT' has no folders of classes; it must hold one folder of pictures per class"),
        (["1.jpg", ".hidden/1.jpg"], 0.2, "'ROOT' has no folders of classes; it must hold one folder of pictures"),
        (["a/1.jpg", "a/2.jpg"], 0.2, "'ROOT' has a single class folder, 'a'; at least two are needed"),
        (["a/1.jpg", "b/1.txt"], 0.2, "'ROOT/b' holds no picture (.apng, .avif, "),
        (["a/1.jpg", "b/1.jpg"], 0.2, "each class in 'ROOT' has a single picture, so none is left for testing"),
        (["a/1.jpg", "a/2.jpg", "b/1.jpg"], 0.0, "data.test_fraction is 0 and 'ROOT' has no test/ folder; it must be"),
    ],
)
def test_plain_folder_that_does_not_fit_is_named(tmp_path, names, fraction, problem):
    touch(tmp_path, *names)
    assert only_problem(folder, tmp_path, fraction, 0).startswith(problem.replace("ROOT", str(tmp_path)))


def test_absent_root_is_named(tmp_path):
    absent = tmp_path / "absent"
    assert only_problem(folder, absent, 0.2, 0).startswith(f"data.root '{absent}' is not a folder; it must hold")
