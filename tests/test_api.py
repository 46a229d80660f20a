"""The main way, walked end to end on the built-in data with short schedules."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import longtail
from longtail.runs.model_file import load_model_file
from longtail.runs.run import new_run

SHORT = {"training.epochs": 3, "model.backbone": "resnet20", "model.num_experts": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = longtail.load_recipe("digits-lt-ride", SHORT | {"data.val_fraction": 0.2, "training.validate_every": 2})
    return longtail.train(config, tmp_path_factory.mktemp("runs") / "short")


def test_run_folder_is_complete(run):
    names = {path.name for path in run.folder.iterdir()}
    assert names == {
        "config.yaml", "metrics.jsonl", "model.safetensors", "results.json", "environment.json", "report.md", "plots",
        "router.json", ".lock",
    }  # fmt: skip
    assert {path.name for path in (run.folder / "plots").iterdir()} >= {"classes.png", "history.png", "confusion.png"}
    history = run.history()
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert ["val_balanced" in record for record in history] == [False, True, False]
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__
    assert environment["training_seconds"] > 0


def test_results_agree_with_the_model(run):
    """Test accuracy recomputed from the saved weights, picture by picture, with nothing of the evaluation code."""
    results = json.loads((run.folder / "results.json").read_text())
    dataset = longtail.build.load_data(run.config)
    model = longtail.load_model(run.folder)
    right = 0
    for pixels, label in zip(dataset.test.pixels, dataset.test.labels, strict=True):
        image = torch.tensor(pixels / 255, dtype=torch.float32)
        image = (image - torch.tensor(run.config.data.mean)) / torch.tensor(run.config.data.std)
        with torch.inference_mode():
            logits = model(image.permute(2, 0, 1)[None]).logits[0]
        right += int(logits.mean(dim=0).argmax() == label)
    assert results["test"]["accuracy"] == right / 600
    assert results["test"]["num_images"] == 600
    assert results["val"]["num_images"] == len(dataset.val)
    assert results["class_counts"] == dataset.class_counts
    assert results["epoch"] == 3


def test_same_seed_same_weights_and_config_file_runs_again(run, tmp_path):
    again = longtail.train(longtail.load_recipe(run.folder / "config.yaml"), tmp_path / "again")
    first, second = (load_file(r.folder / "model.safetensors") for r in (run, again))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = longtail.train(longtail.load_recipe("digits-lt-ride", SHORT | {"seed": 1}), tmp_path / "other")
    third = load_file(other.folder / "model.safetensors")
    assert not torch.equal(first["trunk.conv1.weight"], third["trunk.conv1.weight"])


def test_evaluate_again_writes_the_same_results(run):
    path = run.folder / "results.json"
    before = json.loads(path.read_text())
    path.unlink()
    result = longtail.evaluate(run.folder)
    again = json.loads(path.read_text())
    for part in ("val", "test"):  # measured anew
        assert before[part]["routing"].pop("images_per_second") is not None
        assert again[part]["routing"].pop("images_per_second") is not None
    assert again == before
    assert longtail.evaluate(run, split="val").num_images < result.num_images


def test_validation_chooses_nothing(run):
    """Training with and without looking at the validation part ends in the same weights."""
    config = longtail.load_recipe(run.folder / "config.yaml", {"training.validate_every": 0})
    blind = longtail.train(config, run.folder.parent / "blind")
    first, second = (load_file(r.folder / "model.safetensors") for r in (run, blind))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_training_learns(tmp_path):
    """A handful of epochs on three balanced experts beats chance by far."""
    config = longtail.load_recipe(
        "digits-lt-ride", SHORT | {"training.epochs": 4, "data.imbalance": "none", "router.train": False}
    )
    result = longtail.evaluate(longtail.train(config, tmp_path / "run"))
    assert result.accuracy > 0.5


def test_folder_of_pictures_to_predictions(tmp_path):
    """A user's own pictures: train, then classify new ones. Red, green and blue are easy to tell apart."""
    rng = np.random.default_rng(0)
    for channel, (name, count) in enumerate({"red": 24, "green": 12, "blue|sky": 5}.items()):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 90, (20, 30, 3), dtype=np.uint8)
            pixels[..., channel] += 140
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.jpg")
    settings = {
        "data.name": "folder", "data.root": str(tmp_path / "photos"), "data.image_size": 16, "data.imbalance": "none",
        "training.epochs": 10, "training.batch_size": 8, "model.backbone": "resnet20", "data.workers": 0,
        "router.train": False,
    }  # fmt: skip
    run = longtail.train(longtail.load_recipe("digits-lt-ride", settings), tmp_path / "run")
    assert json.loads((run.folder / "results.json").read_text())["class_names"] == ["blue|sky", "green", "red"]
    # What it says of each test picture, which longtail predict says too.
    with (run.folder / "predictions.csv").open(newline="") as lines:
        said = list(csv.DictReader(lines))
    assert [row["class"] for row in said] == ["blue|sky"] + ["green"] * 2 + ["red"] * 5
    found = list(longtail.predict(run.folder, [tmp_path / "photos" / row["picture"] for row in said]))
    assert [row["predicted"] for row in said] == [prediction.class_name for prediction in found]
    likely = [prediction.probability for prediction in found]
    assert [float(row["probability"]) for row in said] == pytest.approx(likely, abs=1e-5)
    assert "[predictions.csv](predictions.csv)" in (run.folder / "report.md").read_text()
    new = tmp_path / "new.png"
    Image.new("RGB", (40, 24), (200, 40, 40)).save(new)
    (prediction,) = longtail.predict(run.folder, [new])
    assert (prediction.path, prediction.class_name) == (new, "red")
    assert 0.5 < prediction.probability <= 1
    for other in longtail.predict(run.folder, [new] * 3, batch_size=2):
        assert other == (new, "red", pytest.approx(prediction.probability, abs=1e-5), ())
    streamed = longtail.load_recipe("digits-lt-ride", settings | {"data.cache_gib": 0, "training.epochs": 1})
    longtail.train(streamed, tmp_path / "streamed")


def test_new_run_never_overwrites(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = new_run("birds")
    first.folder.mkdir(parents=True)
    assert new_run("birds").folder.name == "birds-2"
    (first.folder / "model.safetensors").touch()
    with pytest.raises(longtail.InputError, match="exists already"):
        new_run("birds", first.folder)


def test_wrong_input_leaves_nothing_behind(tmp_path):
    for settings in ({"data.name": "folder", "data.root": str(tmp_path / "none")}, {"model.backbone": "resnet33"}):
        with pytest.raises(longtail.InputError):
            longtail.train(longtail.load_recipe("digits-lt-ride", settings), tmp_path / "run")
    with pytest.raises(longtail.InputError, match="val_fraction"):
        longtail.train(
            longtail.load_recipe("digits-lt-ride", {"training.validate_every": 1, "data.val_spare": 0}),
            tmp_path / "run",
        )
    with pytest.raises(longtail.InputError, match="no validation images to choose the router's threshold on"):
        longtail.train(longtail.load_recipe("digits-lt-ride", {"data.imbalance": "none"}), tmp_path / "run")
    budget = {"router.compute_budget": "x", "router.max_accuracy_drop": None}
    with pytest.raises(longtail.InputError, match="compute budget 'x'"):
        longtail.train(longtail.load_recipe("digits-lt-ride", budget), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def damage(tensors, how):
    if how == "missing":
        tensors.pop("trunk.conv1.weight")
    if how == "extra":
        tensors["more"] = torch.zeros(1)
    if how == "shape":
        tensors["trunk.conv1.weight"] = torch.zeros(1)
    return tensors


@pytest.mark.parametrize("how", ["missing", "extra", "shape", "truncated", "no description", "pickle"])
def test_damaged_models_are_refused(run, tmp_path, how):
    path = tmp_path / "model.safetensors"
    whole = (run.folder / "model.safetensors").read_bytes()
    metadata = {} if how == "no description" else {"longtail": json.dumps(vars(load_model_file(run.model_path)[1]))}
    if how == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif how == "pickle":
        torch.save({"a": 1}, path)
    else:
        save_file(damage(load_file(run.model_path), how), path, metadata)
    with pytest.raises(longtail.InputError, match=r"model\.safetensors"):
        longtail.load_model(path)


def test_other_classes_are_refused(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(run.model_path.read_bytes())
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    settings["data"] |= {"name": "folder", "root": str(tmp_path / "photos"), "imbalance": "none", "val_fraction": 0.4}
    (other / "config.yaml").write_text(yaml.safe_dump(settings))
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / f"{number}.png")
    with pytest.raises(longtail.InputError, match="other classes"):
        longtail.evaluate(other)


def make_folder(root, counts, color=0):
    for label, count in enumerate(counts):
        (root / f"class {label}").mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image = Image.new("RGB", (8, 8), (50 * label, number, color))
            image.save(root / f"class {label}" / f"{number}.png")


def test_changed_data_are_refused(tmp_path):
    """One more picture draws the held-out part anew: it would hold images the model was trained on."""
    make_folder(tmp_path / "photos", [9, 6])
    settings = SHORT | {"data.name": "folder", "data.root": str(tmp_path / "photos"), "data.imbalance": "none",
                        "data.image_size": 8, "training.epochs": 1, "router.train": False}  # fmt: skip
    run = longtail.train(longtail.load_recipe("digits-lt-ride", settings), tmp_path / "run")
    assert longtail.evaluate(run).num_images == 3
    (tmp_path / "photos").rename(tmp_path / "moved")
    moved = longtail.load_recipe(run.config_path, {"data.root": str(tmp_path / "moved")})
    assert longtail.evaluate(run, config=moved).num_images == 3
    Image.new("RGB", (8, 8)).save(tmp_path / "moved" / "class 0" / "new.png")
    with pytest.raises(longtail.InputError, match="train again"):
        longtail.evaluate(run, config=moved)


def test_bad_test_pictures_are_all_found_before_training(tmp_path):
    for part in ("train", "test"):
        make_folder(tmp_path / "photos" / part, [4, 3])
    bad = [tmp_path / "photos/test/class 0/bad.png", tmp_path / "photos/test/class 1/worse.png"]
    for path in bad:
        path.write_bytes(b"")
    settings = SHORT | {"data.name": "folder", "data.root": str(tmp_path / "photos"), "data.imbalance": "none",
                        "data.image_size": 8, "router.train": False}  # fmt: skip
    with pytest.raises(longtail.InputError) as caught:
        longtail.train(longtail.load_recipe("digits-lt-ride", settings), tmp_path / "run")
    assert [str(path) in line for path, line in zip(bad, str(caught.value).splitlines(), strict=True)] == [True, True]
    assert not (tmp_path / "run").exists()


def test_global_random_numbers_are_left_alone(run, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    longtail.train(longtail.load_recipe("digits-lt-ce", {"training.epochs": 1}), tmp_path / "run")
    longtail.load_model(run.folder)
    longtail.evaluate(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_interrupted_run_can_be_used(tmp_path):
    """Ctrl-C in the middle: exit code 75, and the last complete epoch can be tested."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "longtail", "train", "--output", str(folder), "--training.epochs", "1000"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
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
    assert "longtail evaluate" in out
    epochs = load_model_file(folder / "model.safetensors")[1].epoch
    assert 1 <= epochs < 1000
    result = longtail.evaluate(folder)
    assert result.num_images == 600
    assert json.loads((folder / "results.json").read_text())["epoch"] == epochs
