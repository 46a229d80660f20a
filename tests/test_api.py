"""The main functions from end to end, on the built-in digits and on folders of images, with short schedules."""

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from helpers.runs import are_equal, digits, environment, untimed_results, weights
from PIL import Image
from safetensors.torch import load_file, save_file

import longtail
from longtail.data.build import load_data
from longtail.runs.model_file import load_model_file
from longtail.runs.run import new_run
from longtail.utils.errors import InputError

SMALL = {"model.backbone": "resnet20", "model.num_experts": 2}


def write_images(root, counts, color=0):
    for label, count in enumerate(counts):
        (root / f"class {label}").mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = Image.new("RGB", (8, 8), (50 * label, number, color))
            image.save(root / f"class {label}" / f"{number}.png")
    return root


def folder_config(root, **changes):
    """Settings for a folder of images of 8 by 8 pixels: one epoch, no router."""
    settings = {"data.name": "folder", "data.root": str(root), "data.imbalance": "none", "data.image_size": 8}
    settings |= {"training.epochs": 1, "router.train": False}
    return digits(SMALL | settings | changes)


# ---- a run ----


def test_a_run_folder_is_complete(digits_run):
    assert {path.name for path in digits_run.folder.iterdir()} == {
        "config.yaml", "metrics.jsonl", "model.safetensors", "results.json", "environment.json", "report.md", "plots",
        "router.json", ".lock", "report.html", "outputs.safetensors",
    }  # fmt: skip
    plots = {path.name for path in (digits_run.folder / "plots").iterdir()}
    assert plots >= {"classes.png", "history.png", "confusion.png"}
    assert [record["epoch"] for record in digits_run.history()] == [1, 2]
    assert digits_run.environment()["packages"]["torch"] == torch.__version__
    assert digits_run.environment()["training_seconds"] > 0
    assert digits_run.progress() == (2, True, True, True, True)
    assert digits_run.is_finished


def test_results_agree_with_the_model(digits_run):
    """Accuracy computed from the saved weights, without the evaluation code."""
    results, config = digits_run.results(), digits_run.config
    dataset = load_data(config.data)
    model = longtail.load_model(digits_run.folder)
    images = torch.tensor(dataset.test.pixels / 255, dtype=torch.float32)
    images = (images - torch.tensor(config.data.mean)) / torch.tensor(config.data.std)
    with torch.inference_mode():
        predictions = model(images.permute(0, 3, 1, 2)).logits.mean(dim=1).argmax(dim=1)
    assert results["test"]["accuracy"] == (predictions.numpy() == dataset.test.labels).mean()
    assert results["test"]["num_images"] == 600
    assert results["val"]["num_images"] == len(dataset.val)
    assert results["class_counts"] == dataset.class_counts
    assert results["epoch"] == 2


def test_an_evaluation_repeats_the_results(digits_run, digits_run_copy, no_plots):
    (digits_run_copy.folder / "results.json").unlink()
    evaluation = longtail.evaluate(digits_run_copy.folder)
    assert untimed_results(digits_run_copy.folder) == untimed_results(digits_run.folder)
    assert longtail.evaluate(digits_run_copy, split="val").num_images < evaluation.num_images
    with pytest.raises(longtail.InputError, match="device is 'nothing'"):
        longtail.evaluate(digits_run_copy, config=replace(digits_run.config, device="nothing"))


@pytest.mark.slow
def test_the_same_settings_give_the_same_weights(digits_run, tmp_path, no_plots):
    """Also from the run's settings file; another seed gives other weights."""
    again = longtail.train(longtail.load_recipe(digits_run.config_path), tmp_path / "again")
    assert are_equal(weights(again), weights(digits_run))
    other = longtail.train(digits({"seed": 1}), tmp_path / "other")
    assert not torch.equal(weights(other)["trunk.conv1.weight"], weights(digits_run)["trunk.conv1.weight"])


@pytest.mark.slow
def test_validation_during_training_changes_nothing(digits_run, tmp_path, no_plots):
    validated = longtail.train(digits({"training.validate_every": 2}), tmp_path / "run")
    assert ["val_balanced" in record for record in validated.history()] == [False, True]
    assert are_equal(weights(validated), weights(digits_run))


@pytest.mark.slow
def test_training_learns(tmp_path, no_plots):
    """A few epochs on balanced classes are far better than chance."""
    changes = {"training.epochs": 4, "data.imbalance": "none", "router.train": False}
    assert longtail.evaluate(longtail.train(digits(SMALL | changes), tmp_path / "run")).accuracy > 0.5


def test_global_random_numbers_are_left_alone(digits_run_copy, tmp_path, no_plots):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    longtail.train(digits({"training.epochs": 1}, "digits-lt-ce"), tmp_path / "run")
    longtail.load_model(digits_run_copy.folder)
    longtail.evaluate(digits_run_copy)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_an_interrupted_run_can_be_evaluated(tmp_path):
    """After Ctrl-C the run holds the last complete epoch, and the exit code is 75."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "longtail", "train", "--output", str(folder), "--training.epochs", "1000"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        # Shells start background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (folder / "model.safetensors").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 75, err
    assert "Traceback" not in err
    assert f"longtail evaluate {folder}" in out
    epochs = load_model_file(folder / "model.safetensors")[1].epoch
    assert 1 <= epochs < 1000
    assert longtail.evaluate(folder).num_images == 600
    assert longtail.Run(folder).results()["epoch"] == epochs


# ---- a user's own images ----


def test_from_a_folder_of_images_to_predictions(tmp_path):
    """Red, green and blue images are easy to classify."""
    rng = np.random.default_rng(0)
    for channel, (name, count) in enumerate({"red": 24, "green": 12, "blue|sky": 5}.items()):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 90, (20, 30, 3), dtype=np.uint8)
            pixels[..., channel] += 140
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    changes = {"training.epochs": 10, "training.batch_size": 8, "data.image_size": 16, "data.workers": 0}
    run = longtail.train(folder_config(tmp_path / "photos", **changes), tmp_path / "run")
    assert run.results()["class_names"] == ["blue|sky", "green", "red"]
    # predictions.csv holds the predictions for the test images.
    with (run.folder / "predictions.csv").open(newline="") as lines:
        _, *rows = csv.reader(lines)
    names, classes, predicted, probabilities = zip(*rows, strict=True)
    assert classes == ("blue|sky", *["green"] * 2, *["red"] * 5)
    predictions = list(longtail.predict(run.folder, [tmp_path / "photos" / name for name in names]))
    assert predicted == tuple(prediction.class_name for prediction in predictions)
    expected = [prediction.probability for prediction in predictions]
    assert list(map(float, probabilities)) == pytest.approx(expected, abs=1e-5)
    assert "[predictions.csv](predictions.csv)" in (run.folder / "report.md").read_text()
    new = tmp_path / "new.png"
    Image.new("RGB", (40, 24), (200, 40, 40)).save(new)
    (prediction,) = longtail.predict(run.folder, [new])
    assert (prediction.path, prediction.class_name) == (new, "red")
    assert 0.5 < prediction.probability <= 1
    for repeated in longtail.predict(run.folder, [new] * 3, batch_size=2):
        assert repeated == (new, "red", pytest.approx(prediction.probability, abs=1e-5), ())


@pytest.mark.slow
def test_images_that_do_not_fit_into_memory_are_streamed(tmp_path, no_plots):
    write_images(tmp_path / "photos", [9, 6])
    streamed = longtail.train(folder_config(tmp_path / "photos", **{"data.cache_gib": 0}), tmp_path / "streamed")
    cached = longtail.train(folder_config(tmp_path / "photos"), tmp_path / "cached")
    assert streamed.results()["test"]["num_images"] == cached.results()["test"]["num_images"] == 3


def test_changed_images_are_refused(tmp_path, no_plots):
    """With one image more, the test split is drawn anew and would hold images of the training."""
    photos = write_images(tmp_path / "photos", [9, 6])
    run = longtail.train(folder_config(photos), tmp_path / "run")
    assert longtail.evaluate(run).num_images == 3
    photos.rename(tmp_path / "moved")
    moved = longtail.load_recipe(run.config_path, {"data.root": str(tmp_path / "moved")})
    assert longtail.evaluate(run, config=moved).num_images == 3
    Image.new("RGB", (8, 8)).save(tmp_path / "moved" / "class 0" / "new.png")
    with pytest.raises(longtail.InputError, match="training images"):
        longtail.evaluate(run, config=moved)


def test_corrupt_images_are_all_found_before_training(tmp_path):
    for split in ("train", "test"):
        write_images(tmp_path / "photos" / split, [4, 3])
    corrupt = [tmp_path / f"photos/{name}" for name in ("train/class 0/bad.png", "test/class 1/worse.png")]
    for path in corrupt:
        path.write_bytes(b"")
    with pytest.raises(longtail.InputError) as caught:
        longtail.train(folder_config(tmp_path / "photos"), tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert [str(path) in line for path, line in zip(corrupt, lines, strict=True)] == [True, True]
    assert not (tmp_path / "run").exists()


# ---- wrong input ----


def test_an_output_folder_is_never_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = new_run("birds")
    first.folder.mkdir(parents=True)
    assert new_run("birds").folder.name == "birds-2"
    (first.folder / "model.safetensors").touch()
    with pytest.raises(longtail.InputError, match=f"{first.folder}.*exists"):
        new_run("birds", first.folder)


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"data.name": "folder", "data.root": "none"}, "none"),
        ({"model.backbone": "resnet33"}, "resnet33"),
        ({"training.validate_every": 1, "data.val_spare": 0}, "val_fraction"),
        ({"data.imbalance": "none"}, "validation images"),
        ({"router.compute_budget": "x", "router.max_accuracy_drop": None}, "'x'"),
        ({"device": "nothing"}, "'nothing'"),
    ],
)
def test_wrong_settings_leave_nothing_behind(tmp_path, monkeypatch, changes, fact):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(longtail.InputError, match=fact):
        longtail.train(longtail.load_recipe("digits-lt-ride", changes), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def damage(tensors, how):
    if how == "missing":
        tensors.pop("trunk.conv1.weight")
    if how == "extra":
        tensors["more"] = torch.zeros(1)
    if how == "shape":
        tensors["trunk.conv1.weight"] = torch.zeros(1)
    return tensors


@pytest.mark.parametrize("how", ["missing", "extra", "shape", "truncated", "no metadata", "pickle"])
def test_damaged_model_files_are_refused(digits_run, tmp_path, how):
    path, content = tmp_path / "model.safetensors", digits_run.model_path.read_bytes()
    metadata = {} if how == "no metadata" else {"longtail": json.dumps(vars(load_model_file(digits_run.model_path)[1]))}
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "pickle":
        torch.save({"a": 1}, path)
    else:
        save_file(damage(load_file(digits_run.model_path), how), path, metadata)
    with pytest.raises(longtail.InputError, match=r"model\.safetensors"):
        longtail.load_model(path)


def test_a_run_without_results(tmp_path):
    with pytest.raises(longtail.InputError, match=r"nowhere' has no results\.json"):
        longtail.Run(tmp_path / "nowhere").results()


def test_a_model_is_not_evaluated_on_other_classes(digits_run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(digits_run.model_path.read_bytes())
    settings = yaml.safe_load(digits_run.config_path.read_text())
    settings["data"] |= {"name": "folder", "root": str(tmp_path / "photos"), "imbalance": "none", "val_fraction": 0.4}
    settings["data"] |= {"val_spare": 0}
    (other / "config.yaml").write_text(yaml.safe_dump(settings))
    write_images(tmp_path / "photos", [3, 3])
    with pytest.raises(longtail.InputError, match="classes"):
        longtail.evaluate(other)


def test_values_are_checked_before_data_and_model_are_read(single_expert_run, monkeypatch, tmp_path):
    """As early as on the command line."""
    monkeypatch.setattr("longtail.runs.context.load_data", None)
    run, config = single_expert_run, single_expert_run.config
    wrong = replace(config, training=replace(config.training, precision="x"))
    with pytest.raises(InputError, match=r"training\.precision"):
        longtail.train(wrong, tmp_path / "out")
    with pytest.raises(InputError, match=r"evaluation\.average"):
        longtail.evaluate(run, config=replace(config, evaluation=replace(config.evaluation, average="x")))
    for goal in ({"compute_budget": "x"}, {"max_accuracy_drop": -1}, {"compute_budget": 1, "max_accuracy_drop": 1}):
        with pytest.raises(InputError, match=next(iter(goal)).replace("_", ".")):
            longtail.evaluate(run, **goal)


def test_a_name_is_no_settings():
    with pytest.raises(InputError, match=r"config is 'digits-lt-ce'; .*load_recipe"):
        longtail.train("digits-lt-ce")
