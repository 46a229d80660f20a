"""The command line, from what is typed to what is printed."""

import csv
import errno
import io

import pytest
import yaml
from helpers.runs import digits
from PIL import Image

import longtail
from longtail.cli import main
from longtail.config.recipes import about, list_recipes

QUICK = ["--training.epochs", "1", "--model.backbone", "resnet20", "--model.num_experts", "2"]


def fails(arguments, capsys):
    """Runs a command that fails, and returns its message."""
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


@pytest.mark.usefixtures("no_plots")
def test_train_shows_its_progress_and_results(tmp_path, capsys):
    folder = tmp_path / "a long folder name with [red]brackets[/b], wider than the eighty columns of a terminal"
    assert main(["train", "--output", str(folder), "--name", "a[/x]", "--device", "cpu", *QUICK]) == 0
    out = capsys.readouterr().out
    for words in ("a[/x]: 600 test images", "epoch 1/1", "images/s", "ensemble", "expert 2", "balanced"):
        assert words in out
    assert f"{folder / 'report.html'}\n" in out  # neither taken for markup nor broken into lines


@pytest.mark.usefixtures("no_plots")
def test_a_finished_run_is_not_trained_again(digits_run_copy, capsys):
    before = digits_run_copy.model_path.read_bytes()
    (digits_run_copy.folder.parent / "mine.yaml").write_bytes(digits_run_copy.config_path.read_bytes())
    config = str(digits_run_copy.folder.parent / "mine.yaml")
    assert main(["train", "--config", config, "--output", str(digits_run_copy.folder)]) == 0
    assert "finished" in capsys.readouterr().out
    assert digits_run_copy.model_path.read_bytes() == before


@pytest.mark.usefixtures("no_plots")
def test_evaluate_takes_settings_of_the_evaluation(digits_run_copy, capsys):
    folder = str(digits_run_copy.folder)
    assert main(["evaluate", folder, "--evaluation.many_above", "60", "--device", "cpu"]) == 0
    assert "60 training images" in capsys.readouterr().out
    for setting in ("model.num_experts", "router.threshold", "training.epochs", "seed"):
        assert f"'{setting}'" in fails(["evaluate", folder, f"--{setting}", "1"], capsys)
    assert "'training.epochs'" in fails(["router", folder, "--training.epochs=9"], capsys)


@pytest.mark.usefixtures("no_plots")
def test_router_and_threshold(digits_run_copy, capsys):
    folder = digits_run_copy.folder
    assert main(["evaluate", str(folder), "--split", "val", "--compute_budget", "1.1"]) == 0
    assert "val images" in capsys.readouterr().out
    assert main(["router", str(folder), "--compute_budget", "1.3", "--router.epochs", "1", "--device", "cpu"]) == 0
    config = longtail.Run(folder).config
    assert (config.router.compute_budget, config.router.max_accuracy_drop, config.router.epochs) == (1.3, None, 1)
    assert "compute_budget" in fails(["router", folder, "--compute_budget", "2", "--max_accuracy_drop", "1"], capsys)


@pytest.mark.usefixtures("no_plots")
def test_classifiers(experts_run_copy, capsys):
    command = ["classifier", str(experts_run_copy.folder), "--device", "cpu", "--classifier.method"]
    assert main([*command, "nearest-mean"]) == 0
    assert "ensemble" in capsys.readouterr().out
    assert longtail.Run(experts_run_copy.folder).config.classifier.method == "nearest-mean"
    assert "model.head is 'cosine'" in fails([*command, "tau"], capsys)
    assert "did you mean 'tau'" in fails([*command, "tua"], capsys)
    assert "'training.epochs'" in fails([*command, "retrain", "--training.epochs", "9"], capsys)
    assert main([*command, "none"]) == 0
    capsys.readouterr()
    assert "classifier.method" in fails(["classifier", experts_run_copy.folder], capsys)


def test_predict_prints_csv(digits_run, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "a,b.png")
    (tmp_path / "._a.png").write_bytes(b"a hidden file, as macOS writes them")
    assert main(["predict", str(digits_run.folder), str(tmp_path), "--precision", "bf16", "--top", "2"]) == 0
    header, row = csv.reader(io.StringIO(capsys.readouterr().out))
    assert header == ["image", "class", "probability", "class_2", "probability_2"]
    assert row[0] == str(tmp_path / "a,b.png")
    assert {row[1], row[3]} <= set(digits_run.load_model()[1].class_names)
    assert 1 >= float(row[2]) >= float(row[4]) >= 0


def test_notes_are_not_among_the_predictions(digits_run, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "image.png")
    (tmp_path / "notes.txt").touch()
    assert main(["predict", str(digits_run.folder), str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 2
    assert str(tmp_path) in captured.err


def test_print_config_prints_all_settings(capsys):
    assert main(["train", "--config", "cifar100-lt-ce", "--print_config", "--training.epochs", "9"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["training"]["epochs"] == 9
    assert settings["loss"]["name"] == "cross_entropy"
    assert settings["data"]["subset_seed"] == 0


def test_help_of_train_documents_every_setting(capsys):
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for words in ("--config", "--print_config", "--training.learning_rate", "Learning rate after warm-up"):
        assert words in out
    assert "--data CONFIG" not in out  # a file for one section


def test_every_command_has_help(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    commands = ("classifier", "convert", "evaluate", "experiment", "flops", "predict", "recipes", "router", "train")
    out = capsys.readouterr().out
    assert all(f"\n    {command}" in out for command in commands)
    for command in commands[:-1]:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        out = capsys.readouterr().out
        assert f"usage: longtail {command}" in out
        assert ("--section.field" in out) == (command not in ("convert", "predict", "recipes"))


def test_a_command_may_say_that_it_takes_no_settings(monkeypatch, capsys):
    monkeypatch.setattr("longtail.cli.flops.TAKES_SETTINGS", False)
    assert "unknown argument '--seed'" in fails(["flops", "runs/a", "--seed", "1"], capsys)


def test_recipes_are_listed_with_their_descriptions(capsys):
    assert main(["recipes"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for name in list_recipes():
        recipe = about(name)
        for text in (name, recipe.description, recipe.expected, recipe.time):
            assert " ".join(text.split()) in out


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith("longtail 0.")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "report.md"), 2, "report.md: No space left on device"),
        (MemoryError(), 2, "memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "training.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "training.batch_size"),
        (longtail.InputError("a\x1b[2Jb"), 2, r"a\x1b[2Jb"),
        (longtail.InputError(""), 2, None),  # in all processes of a job but one
        (longtail.Stopped(), 75, "stopped"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(error, code, message, monkeypatch, capsys):
    def raise_it(*arguments, **options):
        raise error

    monkeypatch.setattr("longtail.api.train", raise_it)
    assert main(["train"]) == code
    err = capsys.readouterr().err
    assert len(err.splitlines()) == (message is not None)
    assert message is None or (err.startswith("longtail: ") and message in err)


def test_other_errors_are_not_hidden(monkeypatch):
    monkeypatch.setattr("longtail.api.train", lambda *arguments: [][0])
    with pytest.raises(IndexError):
        main(["train"])


def test_settings_of_the_command_line_reach_the_training(monkeypatch):
    trained = []
    monkeypatch.setattr("longtail.api.train", lambda *arguments: trained.append(arguments))
    assert main(["train", "--output", "there", "--training.epochs", "2", "--router.epochs=2", "--device=cpu"]) == 0
    assert trained == [(digits(), "there")]


# ---- natural mistakes ----


@pytest.mark.parametrize(
    ("command", "facts"),
    [
        ("train --data.root photos", ["'photos'", "built in", "longtail train FOLDER"]),
        ("train --epohcs 3 photos", ["'epohcs'", "epochs'"]),
        ("train photos --rotation 3", ["'rotation'", "augmentation.rotation"]),
        ("train --training.epochs 3 photos", ["'photos'", "a folder comes first"]),
        ("train photos others", ["'others'", "a folder comes first"]),
        ("train photos --gpu 0", ["--gpu", "--device"]),
        ("train photos --opts A 1", ["--opts"]),
        ("train --config photos", ["'photos' is a folder", "longtail train FOLDER"]),
        ("train --recipe nosuch", ["'nosuch'", "longtail recipes"]),
        ("train photos --data.train_list a.csv", ["data.train_list", "--data.name list"]),
        ("check photos --config cifar100-lt-ride --data.val-list a.csv", ["data.val_list", "'folder'"]),
        ("predict a.JPG run", ["'a.JPG' is an image", "RUN IMAGE"]),
    ],
)
def test_mistakes_are_explained(command, facts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (line,) = fails(command.split(), capsys).splitlines()
    for fact in facts:
        assert fact in line


@pytest.mark.parametrize(
    ("command", "facts"),
    [
        ("train RUN", ["run folder"]),
        ("check RUN", ["run folder"]),
        ("train --config RUN", ["config.yaml"]),
        ("evaluate RUN --top 5", ["unknown setting 'top'"]),
        ("evaluate RUN/model.safetensors", ["model.safetensors' is a file", "folder"]),
        ("evaluate RUN --training.epochs 5", ["'training.epochs' cannot change"]),
    ],
)
def test_a_run_in_the_wrong_place(command, facts, digits_run, capsys):
    err = fails(command.replace("RUN", str(digits_run.folder)).split(), capsys)
    for fact in facts:
        assert fact in err


def test_hyphens_in_options(capsys):
    assert main(["train", "--print-config", "--training.batch-size=7", "--name", "my-run"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["training"]["batch_size"], settings["name"]) == (7, "my-run")


@pytest.mark.parametrize("name", ["eval", "opts"])
def test_values_are_not_options_of_the_originals(name, capsys):
    assert main(["train", "--print_config", "--name", name]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["name"] == name


def test_recipes_lose_the_data_set_of_their_own(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("base: cifar100-lt-ride\n")
    (tmp_path / "photos").mkdir()
    found = []
    for recipe in ("cifar100-lt-ride", tmp_path / "mine.yaml"):
        assert main(["train", str(tmp_path / "photos"), "--config", str(recipe), "--print_config"]) == 0
        settings = yaml.safe_load(capsys.readouterr().out)
        data = settings["data"]
        assert (data["name"], data["root"]) == ("folder", str(tmp_path / "photos"))
        found.append((settings["name"], data["imbalance"], data["val_spare"], data["mean"] is None))
    assert found == [("photos", "none", 0, True), ("mine", "exponential", 20, False)]
