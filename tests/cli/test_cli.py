"""What a user sees who types a command."""

import csv
import errno
import io
import shutil

import pytest
import yaml
from PIL import Image

import longtail
from longtail.cli import main

QUICK = ["--training.epochs", "1", "--model.backbone", "resnet20", "--model.num_experts", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    where = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", "--output", str(where), *QUICK]) == 0
    return where


def test_train_prints_a_table(folder, tmp_path, capsys):
    assert main(["train", "--output", str(tmp_path / "run"), *QUICK]) == 0
    out = capsys.readouterr().out
    for word in ("digits-lt-ride", "epoch 1/1", "images/s", "left", "ensemble", "expert 2", "balanced", "report.md"):
        assert word in out


def test_evaluate_and_predict(folder, tmp_path, capsys):
    assert main(["evaluate", str(folder)]) == 0
    assert "ensemble" in capsys.readouterr().out
    Image.new("RGB", (9, 9)).save(tmp_path / "a,b.png")
    assert main(["predict", str(folder), str(tmp_path), "--precision", "bf16"]) == 0
    header, row = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["picture", "class", "probability"]
    assert row[0].endswith("a,b.png")
    assert row[1] in longtail.data.build.digits().class_names
    assert 0 < float(row[2]) <= 1


def test_print_config_is_the_whole_config(capsys):
    assert main(["train", "--config", "cifar100-lt-ce", "--print_config", "--training.epochs", "9"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["training"]["epochs"] == 9
    assert settings["loss"]["name"] == "cross_entropy"
    assert settings["data"]["subset_seed"] == 0


def test_help_documents_every_setting(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("--config", "--print_config", "--training.learning_rate", "Learning rate after warm-up"):
        assert word in out
    assert "--data CONFIG" not in out  # a file for one section


def test_recipes_are_listed_with_all_they_say(capsys):
    assert main(["recipes"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in longtail.config.recipes.list_recipes():
        described = longtail.config.recipes.about(name)
        for words in (name, described.description, described.expected, described.time):
            assert " ".join(words.split()) in out


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith("longtail 0.")


def test_names_are_not_markup_and_lines_are_not_broken(tmp_path, capsys):
    where = tmp_path / "a long folder name with [red]brackets[/b] that is wider than eighty columns of a terminal"
    assert main(["train", "--output", str(where), "--name", "a[/x]", *QUICK]) == 0
    out = capsys.readouterr().out
    assert f"Results, plots and settings: {where / 'report.md'}\n" in out
    assert "a[/x]: 600 test images" in out


def test_evaluate_takes_settings(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert main(["evaluate", str(copy), "--evaluation.many_above", "60"]) == 0
    assert "over 60 training images" in capsys.readouterr().out
    for setting in (["--model.num_experts", "3"], ["--router.threshold=0.9"], ["--training.epochs", "9"]):
        assert main(["evaluate", str(copy), *setting]) == 2
        assert "says nothing about a test; settings of data, evaluation, device do" in capsys.readouterr().err
    assert main(["router", str(copy), "--training.epochs", "9"]) == 2
    assert "says nothing about the router's training" in capsys.readouterr().err


def test_classifiers_by_command(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "copy")
    command = ["classifier", str(copy), "--device", "cpu", "--classifier.method"]
    assert main([*command, "nearest-mean"]) == 0
    assert "ensemble" in capsys.readouterr().out
    assert main(["predict", str(copy), str(copy / "plots" / "classes.png"), "--device", "cpu"]) == 0
    capsys.readouterr()
    for words, says in {
        ("tau",): "classifier.method is 'tau'; it must be none, retrain or nearest-mean where model.head is 'cosine'",
        ("tua",): "classifier.method is 'tua'; it must be one of none, retrain, scale, tau, nearest-mean; did you mean",
        ("retrain", "--training.epochs", "9"): "says nothing about the classifiers of a run",
    }.items():
        assert main([*command, *words]) == 2
        assert says in capsys.readouterr().err
    assert main([*command, "none"]) == 0
    capsys.readouterr()
    assert main(["classifier", str(copy)]) == 2
    assert "has the experts' own classifiers" in capsys.readouterr().err


def test_full_disk_is_one_line(folder, monkeypatch, capsys):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "report.md")

    monkeypatch.setattr("longtail.evaluation.evaluator.write_report", full)
    assert main(["evaluate", str(folder)]) == 2
    assert capsys.readouterr().err == "longtail: report.md: No space left on device\n"


def test_hidden_files_are_not_classified(folder, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "seen.png")
    (tmp_path / "._seen.png").write_bytes(b"what macOS leaves")
    assert main(["predict", str(folder), str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
