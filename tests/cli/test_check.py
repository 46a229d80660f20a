"""`longtail check`, from what is typed to the table and the file."""

import csv
import shutil

import pytest
from helpers.layouts import write_folder, write_published

from longtail.cli import main

HEADER = ["kind", "image", "class", "split", "other image", "detail"]


def rows(path):
    with path.open(newline="") as file:
        header, *lines = csv.reader(file)
    assert header == HEADER
    return lines


def fails(arguments, capsys):
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_folder(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_folder(tmp_path / "photos")
    shutil.copy(root / "class 0/1.jpg", root / "class 1/copy.jpg")
    (root / "class 2/0.jpg").write_bytes(b"")
    assert main(["check", "photos", "--data.subset_seed", "3", "--min_side", "41"]) == 0
    out = capsys.readouterr().out
    found = rows(tmp_path / "check.csv")
    kinds = [row[0] for row in found]
    assert found[0][:3] == ["unreadable", "class 2/0.jpg", "class 2"]
    assert kinds.count("tiny") == 28  # all others are 48 x 40
    assert "copy, two labels" in kinds
    for words in ("smallest 48 x 40", "class 2/0.jpg (the file is empty)", "copy, two labels", "n/a", "check.csv"):
        assert words in out


def test_list_and_output(tmp_path):
    root = write_published(tmp_path / "data", "imagenet-lt")
    lists = [f"--data.{split}_list=ImageNet_LT_{split}.txt" for split in ("train", "test")]
    output = tmp_path / "found.csv"
    assert main(["check", "--data.name", "list", "--data.root", str(root), *lists, "--output", str(output)]) == 0
    assert {row[0] for row in rows(output)} == {"few images", "copy, two splits"}


def test_run(digits_run_copy, capsys):
    folder = digits_run_copy.folder
    assert main(["check", "--run", str(folder)]) == 0
    found = rows(folder / "check.csv")
    assert "likely wrong label" in capsys.readouterr().out
    assert {row[0] for row in found} <= {"likely wrong label"}
    assert digits_run_copy.is_finished


def test_wrong_input_is_named(tmp_path, digits_run_copy, capsys):
    folder = digits_run_copy.folder
    assert "takes no --config" in fails(["check", "--run", folder, "--config", "folder"], capsys)
    assert "'training.epochs'" in fails(["check", "--run", folder, "--training.epochs", "3"], capsys)
    assert "nowhere" in fails(["check", tmp_path / "nowhere"], capsys)
    assert "is not a folder" in fails(["check", "--run", folder, "--output", tmp_path / "a/b.csv"], capsys)


@pytest.mark.usefixtures("no_plots")
def test_training_names_copies(tmp_path, capsys):
    root = write_folder(tmp_path / "photos")
    for name in ("train", "test"):
        shutil.copytree(root, tmp_path / "split" / name)
    settings = ["--config", "digits-lt-ce", "--data.name", "folder", "--data.root", str(tmp_path / "split")]
    settings += ["--data.imbalance", "none", "--data.image_size", "16", "--training.epochs", "1", "--device", "cpu"]
    assert main(["train", *settings, "--output", str(tmp_path / "run")]) == 0
    line = "warning: 28 test images are copies of training or validation images"
    assert line in capsys.readouterr().out
    (tmp_path / "split/test/class 0/0.jpg").write_bytes((root / "class 0/0.jpg").read_bytes() + b"\0")
    dropped = ["--data.duplicates", "drop-test"]
    assert main(["evaluate", str(tmp_path / "run"), *dropped]) == 0
    out = capsys.readouterr().out
    assert "Left out 27 test images" in out
    assert "1 test images" in out
