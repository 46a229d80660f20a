"""Settings that are chosen for a folder, and `longtail train FOLDER`."""

import timeit
from dataclasses import replace

import numpy as np
import pytest
from helpers import layouts

import longtail
from longtail import folder_settings
from longtail.cli import main
from longtail.data.build import load_data
from longtail.data.splits import ImageSplit
from longtail.folder_settings import SIZES, choose_settings, parse_duration
from longtail.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("no_plots")
FAST = {"model.backbone": "resnet10", "model.pretrained": False, "model.experts_from": None, "device": "cpu"}


@pytest.fixture
def photos(tmp_path):
    layouts.write_folder(tmp_path / "photos")
    return tmp_path / "photos"


def config_of(photos, **changes):
    return longtail.load_recipe("folder", FAST | {"data.root": str(photos)} | changes)


def slower(monkeypatch, factor):
    measured = timeit.repeat
    monkeypatch.setattr("timeit.repeat", lambda *args, **options: [factor * t for t in measured(*args, **options)])


def test_more_time_gives_larger_images(photos, monkeypatch):
    config = config_of(photos)
    sizes = [choose_settings(config, time_limit=limit).data.image_size for limit in (1e-6, 1e6)]
    assert sizes == [SIZES[0], SIZES[-1]]
    slower(monkeypatch, 1e9)
    assert choose_settings(config).data.image_size == SIZES[0]


def test_the_time_decides_the_epochs_of_a_fixed_size(photos):
    config = config_of(photos, **{"data.image_size": 32, "training.epochs": 8})
    for pretrained, most in ((True, 10), (False, 8)):
        config = replace(config, model=replace(config.model, pretrained=pretrained))
        chosen = [choose_settings(config, time_limit=limit) for limit in (1e-6, 1e6)]
        assert [settings.training.epochs for settings in chosen] == [folder_settings.MIN_EPOCHS, most]
        assert [settings.data.image_size for settings in chosen] == [32, 32]
    fixed = ["data.image_size", "training.epochs", "training.batch_size"]
    assert choose_settings(config, fixed=fixed) == config
    limited = choose_settings(config, fixed=fixed, time_limit=60)
    assert 0 < limited.training.max_minutes < 1  # the rest is for the test
    assert replace(limited, training=replace(limited.training, max_minutes=None)) == config
    assert choose_settings(config, fixed=[*fixed, "training.max_minutes"], time_limit=60) == config


@pytest.mark.parametrize(("count", "batch"), [(30, 16), (2000, 32), (3000, 64)])
def test_few_images_give_small_batches(count, batch, tmp_path):
    layouts.write_folder(tmp_path / "few", counts=(20, 10))
    config = config_of(tmp_path / "few", **{"model.pretrained": True, "data.val_fraction": 0})
    dataset = load_data(config.data)
    many = ImageSplit(np.zeros(count, dtype=np.int64), paths=np.resize(dataset.train.paths, count))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_settings, "load_data", lambda data: replace(dataset, train=many, val=dataset.test))
        chosen = choose_settings(config)
        assert chosen.training.batch_size == batch
        assert choose_settings(config, fixed=["training.batch_size"]).training.batch_size == 64


def test_enough_images_give_a_validation_part(tmp_path):
    layouts.write_folder(tmp_path / "many", counts=(300, 60, 20))
    layouts.write_folder(tmp_path / "few", counts=(30, 6, 4))
    assert choose_settings(config_of(tmp_path / "many")).data.val_fraction == 0.1
    assert choose_settings(config_of(tmp_path / "few")).data.val_fraction == 0
    assert choose_settings(config_of(tmp_path / "many"), fixed=["data.val_fraction"]).data.val_fraction == 0


def test_the_views_of_the_test_take_time(photos):
    config = config_of(photos, **{"data.image_size": 32})
    ten = replace(config, evaluation=replace(config.evaluation, views="ten-crop"))
    (one, ten) = (choose_settings(settings, time_limit=60).training.max_minutes for settings in (config, ten))
    assert one > ten > 0


def test_a_time_that_is_too_short_is_a_warning(photos, caplog):
    choose_settings(config_of(photos), time_limit=1e-6)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_nothing_else_is_chosen(photos):
    config = config_of(photos)
    chosen = choose_settings(config)
    same = replace(
        chosen,
        data=replace(chosen.data, image_size=config.data.image_size, val_fraction=config.data.val_fraction),
        training=replace(chosen.training, epochs=config.training.epochs, batch_size=64, max_minutes=None),
    )
    assert same == config


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-1m", "0s", "nanm", "infh", "30 minutes"])
def test_what_is_no_duration(text):
    with pytest.raises(InputError, match=f"time '{text}': must be a number with s, m or h"):
        parse_duration(text)


def test_one_command_trains_on_a_folder_and_resumes(photos, tmp_path, capsys):
    settings = [word for name, value in FAST.items() if value is not None for word in (f"--{name}", str(value))]
    command = ["train", str(photos), "--output", str(tmp_path / "run"), "--time", "1s", *settings]
    command += ["--model.experts_from", "layer4", "--data.image_size", "32"]
    assert main(command) == 0
    run = longtail.Run(tmp_path / "run")
    assert run.is_finished
    assert (run.config.data.root, run.config.data.image_size) == (str(photos), 32)
    assert "Chosen for" in capsys.readouterr().out
    assert main(command) == 0  # with the settings of the first time
    assert "is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["cifar100-lt-ride"], ["is a recipe", "--config cifar100-lt-ride"]),
        (["photos", "--data.root", "other"], ["'photos'", "--data.root"]),
        (["photos", "--data.root=other"], ["'photos'", "--data.root"]),
        (["folder"], ["'folder' is not a folder"]),
    ],
)
@pytest.mark.parametrize("command", ["train", "check"])
def test_what_is_no_folder_or_a_second_one(command, arguments, facts, capsys):
    assert main([command, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for fact in facts:
        assert fact in line


def test_time_is_for_folders(capsys):
    assert main(["train", "--time", "30m"]) == 2
    assert "--time is for your own images" in capsys.readouterr().err


def test_damaged_images_do_not_end_the_choice(photos):
    config = config_of(photos)
    for path in photos.rglob("*.png"):
        path.write_bytes(b"nothing")
    assert choose_settings(config).data.image_size


def test_notes_about_the_images_are_said_once(tmp_path, capsys):
    layouts.write_folder(tmp_path / "photos" / "dataset")
    settings = [word for name, value in FAST.items() if value is not None for word in (f"--{name}", str(value))]
    command = ["train", str(tmp_path / "photos"), "--output", str(tmp_path / "run"), *settings]
    command += ["--model.experts_from", "layer4", "--data.image_size", "32", "--training.epochs", "1"]
    assert main(command) == 0
    assert capsys.readouterr().out.count("holds a single folder with images") == 1
