"""Trees of folders in the shapes that people really have: which splits and classes they hold, and what is said."""

import pytest
from helpers.layouts import touch

from longtail.data.sources.folder_layout import read_layout
from longtail.data.sources.split_names import parse_split_name
from longtail.utils.errors import InputError


def tree(root, text):
    """Makes the images of a tree such as ``train/{a,b} test/{a,b}``; a name with a dot is a file."""
    for group in text.split():
        start, _, names = group.partition("{")
        for name in names.removesuffix("}").split(",") if names else [""]:
            path = start + name
            touch(root, path.replace("~", " ") if "." in path else f"{path}/1.jpg".replace("~", " "))


def found(root, layout):
    """The splits as text: {"train": "train/a train/b"}."""
    return {
        split: " ".join(path.relative_to(root).as_posix().replace(" ", "~") for path in folders.values())
        for split, folders in layout.splits.items()
    }


def train_test(train, test, **more):
    return {"train": f"{train}/a {train}/b", "test": f"{test}/a {test}/b", **more}


# ---- splits ----


@pytest.mark.parametrize(
    ("files", "splits", "note"),
    [
        ("train/{a,b} test/{a,b}", train_test("train", "test"), None),
        ("train/{a,b} test/{a,b} val/{a}", train_test("train", "test", val="val/a"), None),
        # Names.
        ("training_set/{a,b} test_set/{a,b}", train_test("training_set", "test_set"),
         "Splits by the names of the folders: 'test_set' is test, 'training_set' is train"),
        ("Train/{a,b} Test~Data/{a,b}", train_test("Train", "Test~Data"), "'Test Data' is test"),
        ("train/{a,b} holdout/{a,b}", train_test("train", "holdout"), "'holdout' is test"),
        ("train/{a,b} hold-out/{a,b}", train_test("train", "hold-out"), "'hold-out' is test"),
        ("train_images/{a,b} test_images/{a,b}", train_test("train_images", "test_images"), "'train_images' is train"),
        ("seg_train/{a,b} seg_test/{a,b} seg_pred/{c}", train_test("seg_train", "seg_test"), "'seg_pred'"),
        ("trainset/{a,b} testset/{a,b}", train_test("trainset", "testset"), "'trainset' is train"),
        ("DogsTrain/{a,b} DogsEval/{a,b}", train_test("DogsTrain", "DogsEval"), "'DogsEval' is test"),
        ("train2017/{a,b} val2017/{a,b} test2017/{a,b}", train_test("train2017", "test2017", val="val2017/a val2017/b"),
         "'val2017' is val"),
        # By the same classes, although the names differ in more than the split.
        ("train_v2/{a,b} final-test/{a,b}", train_test("train_v2", "final-test"), "'final-test' is test"),
        # Val is the test split if there is no other.
        ("train/{a,b} val/{a,b}", train_test("train", "val"), "the validation images are the test split"),
        ("train/{a,b} valid1/{a,b}", train_test("train", "valid1"), "the validation images are the test split"),
        ("train/{a,b} dev/{a,b} test/{a}", {"train": "train/a train/b", "val": "dev/a dev/b", "test": "test/a"}, "dev"),
        # Without labels.
        ("train/{a,b} test1/1.jpg", {"train": "train/a train/b"}, "Left out 'ROOT/test1': its images are in no class"),
        ("train/{a,b} val/{a,b} test/1.jpg", train_test("train", "val"), "Left out 'ROOT/test'"),
        ("train/{a,b} test/notes.txt", {"train": "train/a train/b"}, "holds train/ but no test/ folder"),
        ("train/{a,b}", {"train": "train/a train/b"}, "'ROOT' holds train/ but no test/ folder"),
        # Other folders next to splits.
        ("train/{a,b} test/{a,b} raw/{a,b} x/1.jpg", train_test("train", "test"), "those of the splits: 'raw', 'x'"),
        # A single folder around everything.
        ("dataset/train/{a,b} dataset/test/{a,b}", train_test("dataset/train", "dataset/test"), "single folder"),
        ("seg_train/seg_train/{a,b} seg_test/seg_test/{a,b}", train_test("seg_train/seg_train", "seg_test/seg_test"),
         "the classes are the folders in 'ROOT/seg_train/seg_train'"),
        ("train/{a,b} test/a/{x,y}", {"train": "train/a train/b", "test": "test/a"}, None),
        # Splits within classes.
        ("a/{train,test} b/{train,test}", {"train": "a/train b/train", "test": "a/test b/test"}, "Each class"),
        ("a/{train,val} b/{train}", {"train": "a/train b/train", "test": "a/val"}, "the validation images"),
    ],
)  # fmt: skip
def test_splits_are_found(tmp_path, files, splits, note):
    tree(tmp_path, files)
    layout = read_layout(tmp_path)
    assert found(tmp_path, layout) == splits
    if note is None:
        assert layout.notes == []
    else:
        assert note.replace("ROOT", str(tmp_path)) in "\n".join(layout.notes)


# ---- class folders ----


@pytest.mark.parametrize(
    ("files", "classes", "note"),
    [
        ("cat dog", "cat dog", None),
        ("class_1 class_2 class_3", "class_1 class_2 class_3", None),
        ("0 1 2", "0 1 2", None),
        ("cat/{indoor,outdoor} dog/{street}", "cat dog", None),
        # The class "train", and classes whose names begin with the word for a split.
        ("train car ship", "car ship train", None),
        ("train_station test_tube dev_board cat", "cat dev_board test_tube train_station", None),
        ("trainer valley testament", "testament trainer valley", None),
        ("mask no_mask", "mask no_mask", None),
        # A single folder around everything.
        ("dataset/{cat,dog}", "dataset/cat dataset/dog", "'ROOT' holds a single folder with images; "),
        ("my~data/photos/{cat,dog} my~data/1.jpg", "my~data/photos/cat my~data/photos/dog", "'ROOT/my data/photos'"),
        ("dataset/{cat,dog} dataset/readme.txt annotations/1.xml", "dataset/cat dataset/dog", "single folder"),
        # System litter.
        ("photos/{cat,dog} __MACOSX/photos/cat/._1.jpg __MACOSX/photos/thumb.jpg", "photos/cat photos/dog", "single"),
        ("cat dog " + " ".join(f"{name}/1.jpg" for name in (
            "@eaDir", "$RECYCLE.BIN", "System~Volume~Information", "lost+found", "#recycle", "__pycache__",
            ".ipynb_checkpoints")), "cat dog", None),
        # Hierarchies: few names occur twice.
        ("Quercus/{alba,rubra,robur} Salix/{alba,caprea} Pinus/{nigra}", "Pinus Quercus Salix", None),
        # Below a folder train/ nothing is guessed.
        ("train/fold1/{a,b} train/fold2/{a,b}", "train/fold1 train/fold2", "no test/ folder"),
    ],
)  # fmt: skip
def test_classes_are_found(tmp_path, files, classes, note):
    tree(tmp_path, files)
    layout = read_layout(tmp_path)
    assert found(tmp_path, layout) == {"train": classes}
    if note is None:
        assert layout.notes == []
    else:
        assert note.replace("ROOT", str(tmp_path)) in "\n".join(layout.notes)


@pytest.mark.parametrize(
    ("files", "empty"),
    [
        ("cat dog annotations/1.xml bird/notes.txt", ["annotations", "bird"]),
        ("train/{a,b} train/c/.hidden.jpg test/{a,b}", ["train/c"]),
        ("cat dog cat/@eaDir/1.jpg bird/@eaDir/thumb.jpg bird/Thumbs.db", ["bird"]),
    ],
)
def test_folders_without_images_are_no_classes(tmp_path, files, empty):
    tree(tmp_path, files)
    assert read_layout(tmp_path).empty == [tmp_path / name for name in empty]


# ---- refused ----


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ("train_images/1.jpg test_images/1.jpg", "'ROOT/train_images' has no class folders, only images; "),
        ("train/1.jpg test/{a,b}", "'ROOT/train' has no class folders, only images; "),
        ("train/1.jpg test1/1.jpg labels.csv", "--data.name list --data.train_list FILE"),
        ("test/{a,b} val/{a,b}", "'ROOT' has test/ and val/ but no train/ folder"),
        ("test/{a} cat dog", "'ROOT' has test/ but no train/ folder"),
        ("holdout cat dog", "'ROOT' has holdout/ but no train/ folder"),
        ("train/{a,b} val/{a} valid/{a} test/{a}", "'ROOT/val' and 'ROOT/valid' are both the val split"),
        ("train/{a,b} training/{a,b} test/{a}", "'ROOT/train' and 'ROOT/training' are both the train split"),
        ("fold1_train/{a,b} fold1_test/{a,b} fold2_train/{a,b} fold2_test/{a,b}", "are both the test split"),
        ("train/{a,b} extra/{c,d}", "'ROOT/train' holds class folders, but is next to 'extra': if it is the training"),
        ("HAM_images_part_1 HAM_images_part_2", "'HAM_images_part_2' in 'ROOT' are numbered parts by"),
        ("fold1 fold2 fold3", "are numbered folds by their names, not classes"),
        ("images/1.jpg", "'ROOT' has a single class folder, 'images'; "),
        ("photos/{1.raw,2.raw} other/1.txt", "'ROOT' has no class folders with images; it must hold at least two "
         "folders, one for the images of each class. Files that are not read as images: 2 .raw, 1 .txt"),
        ("images masks", "'images', 'masks' in 'ROOT' are kinds of files by their names, not classes"),
        ("train/{Image,Ground-Truth} test/{Image,Ground-Truth}", "'Ground-Truth', 'Image' in 'ROOT/train' are kinds"),
        # Either level could be the classes.
        ("fold1/{a,b} fold2/{a,b} fold3/{a,b}", "'fold1', 'fold2', 'fold3' in 'ROOT' hold the same folders: 'a', 'b'."),
        ("2019/{a,b,c} 2020/{a,b}", "'2019', '2020' in 'ROOT' hold the same folders: 'a', 'b'."),
        ("home/{a,b} work/{a,b,c} sample", "put them into folders train/ and test/."),
        ("cat/{day,night} dog/{day,night}", "put all of them into a folder train/"),
        ("f0/train/{a,b} f0/test/{a,b} f1/train/{a,b} f1/test/{a,b}",
         "'f0', 'f1' in 'ROOT' hold splits with the same folders: 'a', 'b'. If these are the classes, set data.root to "
         "one of the outer folders, such as 'ROOT/f0'."),
        ("fold_0/{train,test} fold_1/{train,test}", "'fold_0', 'fold_1' in 'ROOT' are numbered folds by their names"),
    ],
)  # fmt: skip
def test_folders_with_two_meanings_are_refused(tmp_path, files, problem):
    tree(tmp_path, files)
    with pytest.raises(InputError) as error:
        read_layout(tmp_path)
    assert problem.replace("ROOT", str(tmp_path)) in str(error.value)
    assert "\n" not in str(error.value)


# ---- names of splits ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train", ("train", ())),
        ("TEST", ("test", ())),
        ("training_set", ("train", ())),
        ("Test Data", ("test", ())),
        ("valid1", ("val", ())),
        ("images-validation", ("val", ())),
        ("TrainImages", ("train", ())),
        ("trainset", ("train", ())),
        ("hold_out", ("test", ())),
        ("asl_alphabet_train", ("train", ("asl", "alphabet"))),
        ("train_station", ("train", ("station",))),
        *[(name, None) for name in ("cat", "trainer", "valley", "latest", "developer", "1", "", "my train set here")],
    ],
)
def test_names_of_splits(name, expected):
    assert parse_split_name(name) == expected
