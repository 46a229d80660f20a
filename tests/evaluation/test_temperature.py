"""Temperature scaling: against a search over a grid, and in runs."""

import csv
import io
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers.ensembles import random_logits, slow_ensemble
from helpers.runs import digits, train_without_reports
from PIL import Image

import longtail
from longtail.cli import main
from longtail.data.build import load_data
from longtail.evaluation.metrics import evaluate_logits
from longtail.evaluation.outputs import ModelOutputs, collect_outputs
from longtail.evaluation.temperature import fit_temperature, predicted_logits
from longtail.models.router import experts_used
from longtail.runs.context import RunContext
from longtail.runs.model_file import load_metadata, load_model_file, save_model
from longtail.runtime.device import Runtime
from longtail.utils.errors import InputError


def slow_scaled(probabilities, temperature):
    """softmax(log(p) / T), for one image."""
    powers = np.asarray(probabilities, dtype=np.float64) ** (1 / temperature)
    return powers / powers.sum()


def slow_nll(rows, labels, temperature):
    return -np.mean([np.log(slow_scaled(row, temperature)[y]) for row, y in zip(rows, labels, strict=True)])


def grid_temperature(rows, labels):
    """The best temperature of a grid whose steps are 0.2 %."""
    grid = np.geomspace(0.001, 50, 5410)
    powers = np.log(np.asarray(rows))[None] / grid[:, None, None]
    powers -= powers.max(axis=2, keepdims=True)
    scores = powers - np.log(np.exp(powers).sum(axis=2, keepdims=True))
    return grid[scores[:, np.arange(len(labels)), labels].mean(axis=1).argmax()]


def slow_ece(rows, labels, bins=15):
    confidences, hits = rows.max(axis=1), rows.argmax(axis=1) == labels
    edges, total = np.linspace(0, 1, bins + 1), 0.0
    for low, high in pairwise(edges):
        inside = (confidences > low) & (confidences <= high)
        if inside.any():
            total += inside.mean() * abs(confidences[inside].mean() - hits[inside].mean())
    return total


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_temperature_is_the_best_of_a_grid(average, factor):
    logits, labels = random_logits(images=60)
    logits[torch.arange(60), :, labels] += 2.0  # better than chance
    logits *= factor
    rows = [slow_ensemble(experts, average) for experts in logits.numpy()]
    temperature = fit_temperature(predicted_logits(ModelOutputs(logits, labels, None, average)), labels)
    assert temperature == pytest.approx(grid_temperature(rows, labels.numpy()), rel=2e-3)
    best = slow_nll(rows, labels, temperature)
    assert all(slow_nll(rows, labels, temperature * change) > best for change in (0.99, 1.01))


def test_temperature_of_routed_predictions():
    logits, labels = random_logits(images=2100)  # several blocks
    router_logits = torch.randn(2100, 2, generator=torch.Generator().manual_seed(1))
    used = experts_used(router_logits, 0.6)
    assert set(used.tolist()) == {1, 2, 3}
    for average in ("logits", "probabilities"):
        routed = predicted_logits(ModelOutputs(logits, labels, router_logits, average), 0.6).softmax(dim=1)
        expected = [slow_ensemble(row[:k], average) for row, k in zip(logits.numpy(), used.tolist(), strict=True)]
        np.testing.assert_allclose(routed, expected, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_there_may_be_no_best_temperature(scale):
    labels = torch.arange(4).repeat(5)
    right = scale * (torch.eye(4)[labels] + torch.rand(20, 4, generator=torch.Generator().manual_seed(0)) / 2)
    assert fit_temperature(right, labels) is None
    assert fit_temperature(-right, labels) is None
    assert fit_temperature(right.fill_(torch.nan), labels) is None


@pytest.mark.parametrize("temperature", [0.1, 0.7, 5.0])
def test_metrics_at_a_temperature(temperature):
    logits, labels = random_logits(images=300)
    without = evaluate_logits(logits, labels, [50] * 4)
    result = evaluate_logits(logits, labels, [50] * 4, temperature=temperature)
    rows = np.array([slow_scaled(slow_ensemble(experts, "logits"), temperature) for experts in logits])
    assert result.ece == pytest.approx(slow_ece(rows, labels.numpy()), abs=1e-6)
    assert result.nll == pytest.approx(-np.log(rows[np.arange(300), labels]).mean(), rel=1e-5)
    assert (without.temperature, without.uncalibrated_ece) == (1.0, without.ece)
    assert (result.temperature, result.uncalibrated_ece) == (temperature, without.ece)
    assert np.array_equal(result.confusion, without.confusion)
    assert (result.accuracy, result.top5, result.per_class) == (without.accuracy, without.top5, without.per_class)


# ---- runs ----


BETTER_THAN_CHANCE = {
    "training.learning_rate": 0.01, "training.warmup": 0, "training.epochs": 3, "loss.name": "cross_entropy",
    "model.head": "linear",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose predictions are better than chance after few epochs. Do not change it."""
    return train_without_reports(digits(BETTER_THAN_CHANCE), tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def run(finished, tmp_path, no_plots):
    return longtail.Run(shutil.copytree(finished.folder, tmp_path / "copy"))


def evaluate(run, *options):
    assert main(["evaluate", str(run.folder), "--device", "cpu", *options]) == 0


def results(run, split="test"):
    found = json.loads((run.folder / "results.json").read_text())[split]
    found["routing"].pop("images_per_second")
    return found


def stored(run):
    """The temperature in the model file and in the settings."""
    settings = longtail.Run(run.folder).config.evaluation
    return load_metadata(run.model_path).architecture.get("temperature"), settings.temperature


def outputs_of(run, split):
    model, _ = run.load_model()
    config = longtail.Run(run.folder).config
    dataset = load_data(config.data)
    context = RunContext(run, config, dataset, Runtime())
    return model, collect_outputs(model, context.eval_loader(getattr(dataset, split)))


def routed_rows(model, outputs):
    used = experts_used(outputs.router_logits, model.router.threshold).tolist()
    return [slow_ensemble(row[:k], "logits") for row, k in zip(outputs.logits.numpy(), used, strict=True)]


def test_temperature_is_chosen_on_the_routed_validation_images(run):
    model, outputs = outputs_of(run, "val")
    best = grid_temperature(routed_rows(model, outputs), outputs.labels.numpy())
    assert model.temperature == pytest.approx(best, rel=2e-3)
    assert stored(run) == (model.temperature, None)

    model, outputs = outputs_of(run, "test")
    labels, found = outputs.labels.numpy(), results(run)
    assert found["temperature"] == model.temperature
    every = [slow_ensemble(row, "logits") for row in outputs.logits.numpy()]
    for rows, scores in ((every, found), (routed_rows(model, outputs), found["routing"])):
        scaled = np.array([slow_scaled(row, model.temperature) for row in rows])
        assert scores["ece"] == pytest.approx(slow_ece(scaled, labels), abs=1e-3)
        assert scores["uncalibrated_ece"] == pytest.approx(slow_ece(np.array(rows), labels), abs=1e-3)
        assert scores["ece"] < scores["uncalibrated_ece"]


def test_an_evaluation_changes_no_temperature(run):
    """Neither that of the model, nor 1 in a file of an earlier version, which has none."""
    for temperature in (results(run)["temperature"], 1.0):
        model, metadata = load_model_file(run.model_path)
        model.temperature = temperature
        save_model(run.model_path, model, metadata)
        before = run.model_path.read_bytes()
        assert ("temperature" in load_metadata(run.model_path).architecture) == (temperature != 1)
        evaluate(run)
        assert run.model_path.read_bytes() == before
        found = results(run)
        assert found["temperature"] == temperature
        assert (found["ece"] == found["uncalibrated_ece"]) == (temperature == 1)


@pytest.mark.slow
def test_temperature_is_set_or_chosen_again(run, capsys):
    before, chosen = results(run), stored(run)[0]
    model_bytes, config_bytes = run.model_path.read_bytes(), run.config_path.read_bytes()
    for again in (["--fit_temperature"], ["--evaluation.temperature", "null"]):
        evaluate(run, "--evaluation.temperature", "2.5")
        assert stored(run) == (2.5, 2.5)
        assert results(run)["temperature"] == 2.5
        assert results(run)["uncalibrated_ece"] == before["uncalibrated_ece"]
        evaluate(run, *again)
        assert stored(run) == (chosen, None)
        assert results(run) == before
        assert (run.model_path.read_bytes(), run.config_path.read_bytes()) == (model_bytes, config_bytes)
    assert "Without temperature scaling: " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--compute_budget", "1.9"], ["--evaluation.average", "probabilities"]])
def test_a_chosen_temperature_is_chosen_again_for_other_predictions(run, options):
    evaluate(run, *options)
    model, outputs = outputs_of(run, "val")
    expected = fit_temperature(predicted_logits(outputs, model.router.threshold), outputs.labels)
    assert stored(run)[0] == expected
    evaluate(run, "--evaluation.temperature", "1")
    assert stored(run) == (None, 1)
    evaluate(run, "--compute_budget", "1.0")
    assert stored(run) == (None, 1)


def test_predictions_use_the_temperature(run, tmp_path, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "image.png")
    rows = {}
    for temperature in (1, 3):
        evaluate(run, "--evaluation.temperature", str(temperature))
        capsys.readouterr()
        assert main(["predict", str(run.folder), str(tmp_path / "image.png"), "--device", "cpu", "--top", "10"]) == 0
        _, (_, *cells) = csv.reader(io.StringIO(capsys.readouterr().out))
        rows[temperature] = dict(zip(cells[::2], map(float, cells[1::2]), strict=True))
    assert list(rows[1]) == list(rows[3])
    np.testing.assert_allclose(list(rows[3].values()), slow_scaled(list(rows[1].values()), 3), rtol=1e-3)


def test_temperature_of_an_unfinished_run_cannot_be_set(run, capsys):
    run.results_path.unlink()
    assert main(["evaluate", str(run.folder), "--device", "cpu", "--evaluation.temperature", "2"]) == 2
    assert "evaluation.temperature" in capsys.readouterr().err


def test_without_validation_images_the_temperature_is_1(experts_run, experts_run_copy, no_plots):
    assert stored(experts_run) == (None, None)
    with pytest.raises(InputError, match=r"evaluation\.temperature"):
        longtail.evaluate(experts_run_copy, fit_temperature=True)
    evaluate(experts_run_copy, "--evaluation.temperature", "2")
    assert stored(experts_run_copy) == (2, 2)


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), float("nan")])
def test_temperature_must_be_positive(temperature):
    with pytest.raises(InputError, match="temperature"):
        longtail.create_model("resnet20", 4, temperature=temperature)
