"""``evaluation.average`` of a run: evaluation, routing, thresholds, label shift and prediction use the same average."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from helpers.ensembles import slow_ensemble
from helpers.runs import EXPERTS_ONLY, are_equal, digits, weights
from PIL import Image

import longtail
from longtail.cli import main
from longtail.data.build import load_data
from longtail.evaluation.outputs import collect_outputs
from longtail.models.router import experts_used
from longtail.runs.context import RunContext
from longtail.runs.model_file import load_metadata
from longtail.runtime.device import Runtime

pytestmark = pytest.mark.usefixtures("no_plots")


@pytest.fixture
def run(digits_run_copy):
    return digits_run_copy


def average(run):
    """The average in the model and in the settings of a run."""
    return longtail.load_model(run.folder).average, longtail.Run(run.folder).config.evaluation.average


def results(run):
    """Results on the test images, without the measured speed and without how the threshold was chosen."""
    test = json.loads((run.folder / "results.json").read_text())["test"]
    for name in ("images_per_second", "chosen_on"):
        test["routing"].pop(name, None)
    return test


def evaluate(run, *options):
    assert main(["evaluate", str(run.folder), "--device", "cpu", *options]) == 0


@pytest.mark.slow
def test_everything_uses_the_average_of_the_run(run, tmp_path, capsys):
    evaluate(run, "--evaluation.temperature", "1")
    config_text = run.config_path.read_bytes()
    by_logits = results(run)
    evaluate(run, "--evaluation.average", "probabilities", "--label_shift")
    assert average(run) == ("probabilities", "probabilities")
    assert load_metadata(run.model_path).threshold_for == ""
    by_probabilities = results(run)

    # Recompute the results from the logits of the experts.
    model, metadata = run.load_model()
    config = longtail.Run(run.folder).config
    dataset = load_data(config.data)
    outputs = collect_outputs(model, RunContext(run, config, dataset, Runtime()).eval_loader(dataset.test))
    rows, labels = outputs.logits.numpy(), outputs.labels.numpy()
    prefixes = np.array([[slow_ensemble(row[:k], "probabilities") for k in (1, 2, 3)] for row in rows])
    correct = prefixes.argmax(axis=2) == labels[:, None]
    nll = -np.log(prefixes[np.arange(len(labels)), 2, labels]).mean()
    assert by_probabilities["accuracy"] == pytest.approx(correct[:, 2].mean())
    assert by_probabilities["nll"] == pytest.approx(nll, rel=1e-5)
    assert by_probabilities["nll"] != pytest.approx(by_logits["nll"], rel=1e-3)
    assert by_probabilities["experts"] == by_logits["experts"]
    routing = by_probabilities["routing"]
    accuracies = [prefix["accuracy"] for prefix in routing["prefixes"]]
    assert accuracies == pytest.approx(correct.mean(axis=0).tolist())
    used = experts_used(outputs.router_logits, model.router.threshold).numpy()
    assert routing["shares"] == by_logits["routing"]["shares"]
    assert routing["accuracy"] == pytest.approx(correct[np.arange(len(labels)), used - 1].mean())
    shift = json.loads((run.folder / "label_shift.json").read_text())
    assert shift["average"] == "probabilities"
    assert shift["rows"][5]["mean"] == by_probabilities["accuracy"]

    # Predict an image.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    inputs = (pixels - torch.tensor(metadata.mean)[:, None, None]) / torch.tensor(metadata.std)[:, None, None]
    capsys.readouterr()
    for options in ([], ["--all_experts"]):
        assert main(["predict", str(run.folder), str(tmp_path / "image.png"), "--device", "cpu", *options]) == 0
        _, row = csv.reader(io.StringIO(capsys.readouterr().out))
        with torch.no_grad():
            experts = model(inputs[None]).logits[0].numpy()
            number = 3 if options else int(model.route(inputs[None]).experts_used)
        assert float(row[2]) == pytest.approx(slow_ensemble(experts[:number], "probabilities").max(), abs=1e-3)

    # The average stays until it is changed again, and only the results depend on it.
    evaluate(run)
    assert results(run) == by_probabilities
    assert (run.folder / "label_shift.json").is_file()
    evaluate(run, "--evaluation.average", "logits")
    assert results(run) == by_logits
    assert not (run.folder / "label_shift.json").exists()
    assert run.config_path.read_bytes() == config_text
    assert are_equal(weights(run), {name: value.cpu() for name, value in model.state_dict().items()})


def test_threshold_is_chosen_for_the_average(run, monkeypatch):
    averages = []
    original = longtail.evaluation.routing.prefix_predictions
    monkeypatch.setattr(
        "longtail.training.router.prefix_predictions",
        lambda logits, average: averages.append(average) or original(logits, average),
    )
    evaluate(run, "--evaluation.average", "probabilities", "--max_accuracy_drop", "1")
    assert averages == ["probabilities"]
    assert load_metadata(run.model_path).threshold_for == "max_accuracy_drop 1"
    assert average(run) == ("probabilities", "probabilities")


@pytest.mark.slow
def test_new_heads_and_routers_keep_the_average(run):
    evaluate(run, "--evaluation.average", "probabilities")
    assert main(["classifier", str(run.folder), "--device", "cpu", "--classifier.method", "nearest-mean"]) == 0
    assert average(run) == ("probabilities", "probabilities")
    options = ["--device", "cpu", "--router.epochs", "1", "--evaluation.average", "logits"]
    assert main(["router", str(run.folder), *options]) == 0
    assert average(run) == ("logits", "logits")


@pytest.mark.parametrize("step", ["collect_outputs", "evaluate_splits"])
@pytest.mark.parametrize("change", [{"compute_budget": 1.3}, {"config": {"evaluation.average": "probabilities"}}])
def test_an_evaluation_that_ends_early_leaves_no_results_of_another_model(change, step, run, monkeypatch):
    def fail(*arguments):
        raise RuntimeError

    config = longtail.load_recipe(run.config_path, change.get("config"))
    before = run.model_path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(f"longtail.reports.results.{step}", fail)
        with pytest.raises(RuntimeError):
            longtail.evaluate(run, **change | {"config": config})
    assert run.results_path.exists() == (run.model_path.read_bytes() == before) == (step == "collect_outputs")
    assert len(set(average(run))) == 1
    longtail.evaluate(run, **change | {"config": config})  # the same command completes it
    assert len(set(average(run))) == 1
    assert results(run)["average"] == config.evaluation.average


def test_an_average_that_only_the_settings_have_is_used(run, monkeypatch):
    """An evaluation was killed between the settings and the model."""
    changed = longtail.load_recipe(run.config_path, {"evaluation.average": "probabilities"})
    run.write_config(changed)
    evaluate(run)
    assert average(run) == ("probabilities", "probabilities")
    run.write_config(longtail.load_recipe(run.config_path, {"evaluation.average": "logits"}))
    run.remove("results.json")
    longtail.resume(run)
    assert average(run) == ("logits", "logits")


def test_training_does_not_depend_on_the_average(experts_run, tmp_path):
    config = digits(EXPERTS_ONLY | {"evaluation.average": "probabilities"})
    run = longtail.train(config, tmp_path / "run")
    assert average(run) == ("probabilities", "probabilities")
    assert are_equal(weights(run), weights(experts_run))
    assert "average" not in load_metadata(experts_run.model_path).architecture


def test_average_of_an_unfinished_run_cannot_be_changed(run, capsys):
    (run.folder / "results.json").unlink()
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    assert main(["evaluate", str(run.folder), "--device", "cpu", "--evaluation.average", "probabilities"]) == 2
    message = capsys.readouterr().err
    assert "not finished" in message
    assert "logits" in message
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before
