"""What people type who come from the original code: it works, or the message names what longtail has instead."""

import json

import pytest
import torch
import yaml

from longtail.cli import main
from longtail.cli._original import resolve_config, translate_options
from longtail.config.recipes import load_recipe
from longtail.utils.errors import InputError

RIDE = {
    "arch": {
        "type": "ResNet32Model",
        "args": {"num_classes": 100, "reduce_dimension": True, "use_norm": True, "num_experts": 3},
    },
    "data_loader": {"type": "ImbalanceCIFAR100DataLoader", "args": {"data_dir": "data", "batch_size": 128}},
    "optimizer": {"type": "SGD", "args": {"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True}},
    "add_extra_info": True,
    "loss": {"type": "RIDELoss", "args": {"additional_diversity_factor": -0.45, "reweight_epoch": 160}},
    "lr_scheduler": {
        "type": "CustomLR",
        "args": {"step1": 160, "step2": 180, "gamma": 0.01, "warmup_epoch": 5},
    },
    "trainer": {"epochs": 200, "save_period": 40},
}


def settings_of(arguments, capsys):
    assert main(["train", "--print_config", *map(str, arguments)]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def fails(arguments, capsys):
    assert main(list(map(str, arguments))) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    return err


@pytest.mark.parametrize(
    ("typed", "section", "setting", "value"),
    [
        (["--lr", "0.2"], "training", "learning_rate", 0.2),
        (["--learning_rate=0.2"], "training", "learning_rate", 0.2),
        (["--bs", "64"], "training", "batch_size", 64),
        (["--batch-size", "64"], "training", "batch_size", 64),
        (["--epochs", "100"], "training", "epochs", 100),
        (["--warmup", "3"], "training", "warmup", 3),
        (["--gamma", "0.5"], "training", "decay", 0.5),
        (["--step2", "90", "--lr", "0.1", "--step1", "60"], "training", "milestones", [60, 90]),
        (["--step1=60", "--step2=90"], "training", "milestones", [60, 90]),
        (["--num_experts", "4"], "model", "num_experts", 4),
        (["--reduce_dimension", "1"], "model", "width", "narrow"),
        (["--reduce_dimension", "0"], "model", "width", "full"),
        (["--distribution_aware_diversity_factor", "-0.3"], "loss", "diversity_factor", -0.3),
        (["--collaborative_loss", "1"], "loss", "collaborative", True),
        (["--pos_weight", "50"], "router", "positive_weight", 50),
        (["--data-path", "there"], "data", "root", "there"),
        (["--accumulation-steps", "4"], "training", "accumulation", 4),
        (["--amp-opt-level", "O1"], "training", "precision", "fp16"),
    ],
)
def test_options_that_work(typed, section, setting, value, capsys):
    assert settings_of(["-c", "cifar100-lt-ride", *typed], capsys)[section][setting] == value


def test_teacher(capsys):
    recipe = "cifar100-lt-ride-distilled"
    assert settings_of(["-c", recipe, "--distill_checkpoint", "a.pth"], capsys)["teacher"] == "a.pth"
    typed = ["--teacher.training.epochs", "2", "--teacher.loss.diversity_factor=-0.1"]
    distillation = settings_of(["--config", recipe, *typed], capsys)["distillation"]
    assert distillation["teacher_settings"] == ["training.epochs=2", "loss.diversity_factor=-0.1"]


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("--layer3_dimension 128", "model.width"),
        ("--use-checkpoint", "checkpoint_activations"),
        ("--load_crt a.pth", "longtail classifier"),
        ("-d 0,1", "--device"),
        ("--opts TRAIN.EPOCHS 3", "--opts"),
        ("--local_rank 0", "torchrun"),
        ("--local_rank=0", "torchrun"),
        ("--layer3_dimension=128", "model.width"),
    ],
)
def test_options_with_a_hint(typed, hint, capsys):
    assert hint in fails(["train", *typed.split()], capsys)


def test_own_settings_are_left_alone():
    own = ["--training.epochs", "3", "--device", "cuda:1", "--seed=1", "--data.root", "-d"]
    assert translate_options(own[:-2]) == (own[:-2], [])


def test_settings_file_of_ride(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RIDE, indent="\t"))
    config, recipe = resolve_config(str(path), ["--num_experts", "3"]), load_recipe("cifar100-lt-ride")
    assert config.model == recipe.model.__class__(**vars(recipe.model) | {"expert_stages": 2})
    assert (config.data, config.augmentation) == (recipe.data, recipe.augmentation)
    absolute = {"milestones": [160, 180], "warmup": 5, "keep_every": 40}
    assert vars(config.training) == vars(recipe.training) | absolute
    assert vars(config.loss) == vars(recipe.loss) | {"reweight_after": 160}
    assert settings_of(["--config", path, "--lr", "0.3"], capsys)["training"]["learning_rate"] == 0.3


def test_settings_file_of_ride_swin(tmp_path):
    path = tmp_path / "swin.yaml"
    path.write_text("MODEL: {NUM_EXPERTS: 2}\nTRAIN: {LOSS_TYPE: RIDE}\n")
    config = resolve_config(str(path), ["--opts", "TRAIN.EPOCHS", "250", "MODEL.DROP_PATH_RATE", "0.3", "--seed", "4"])
    assert (config.model.num_experts, config.model.drop_path_rate, config.training.epochs) == (2, 0.3, 250)
    assert (config.seed, config.loss.name) == (4, "ride")


def test_a_change_of_ride_swin_that_is_not_yaml(tmp_path, capsys):
    (path := tmp_path / "swin.yaml").write_text("MODEL: {NUM_EXPERTS: 2}\n")
    err = fails(["train", "-c", path, "--opts", "MODEL.NUM_EXPERTS", "3", "TRAIN.EPOCHS", "[1"], capsys)
    assert "--opts TRAIN.EPOCHS" in err
    assert "YAML" in err


def test_own_settings_files_stay_yaml(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("{training: {epochs: 3}}\n")
    assert resolve_config(str(path), []).training.epochs == 3


def test_settings_files_that_do_not_fit(tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(RIDE | {"loss": {"type": "MyLoss"}}))
    assert "loss.type" in fails(["train", "--config", path], capsys)
    path.write_text(json.dumps(RIDE | {"arch": {"type": "ResNet32EAModel", "args": {"num_experts": 3}}}))
    assert "longtail router" in fails(["train", "--config", path], capsys)
    path.write_text(json.dumps(RIDE | {"trainer": {"epochs": "many"}}))
    assert str(path) in fails(["train", "--config", path], capsys)


@pytest.mark.parametrize("command", ["evaluate", "router", "classifier", "flops", "predict", "train -r"])
def test_commands_on_a_checkpoint_name_convert(command, tmp_path, capsys):
    path = tmp_path / "model.pth"
    torch.save({"state_dict": {}}, path)
    images = [tmp_path] if command == "predict" else []
    assert f"longtail convert {path} RUN" in fails([*command.split(), path, *images], capsys)


def test_wrong_teacher_settings(tmp_path, capsys):
    run = ["train", "--device", "cpu", "--output", tmp_path / "run"]
    assert "no teacher" in fails([*run, "--teacher.training.epochs", "2"], capsys)
    teacher = [*run, "--teacher", "digits-lt-ce"]
    assert "those of the student" in fails([*teacher, "--teacher.data.root", "x"], capsys)
    assert "training.epoch'" in fails([*teacher, "--teacher.training.epoch", "2"], capsys)
    with pytest.raises(InputError, match="value"):
        resolve_config("digits-lt-ride", ["--teacher.training.epochs"])
