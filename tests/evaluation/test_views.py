"""Test-time views of a run: evaluation and prediction equal a loop over the views, one at a time."""

import csv
import io
import json

import numpy as np
import pytest
import torch
from helpers.ensembles import slow_ensemble
from PIL import Image

import longtail
from longtail.cli import main
from longtail.data.build import load_data
from longtail.evaluation.flops import cost
from longtail.evaluation.outputs import collect_outputs
from longtail.runs.context import RunContext
from longtail.runs.model_file import load_metadata, save_model
from longtail.runtime.device import Runtime

pytestmark = pytest.mark.usefixtures("no_plots")


def slow_outputs(run):
    """Expert logits (V, N, E, C), router logits (V, N, E - 1) and labels of the test images, for both views."""
    model, _ = run.load_model()
    dataset = load_data(run.config.data)
    context = RunContext(run, run.config, dataset, Runtime())
    found, labels = [], []
    with torch.no_grad():
        for mirrored in (False, True):
            outputs = [
                model(batch.inputs.flip(3) if mirrored else batch.inputs)
                for batch in context.eval_loader(dataset.test).epoch(0)
            ]
            found.append(
                (
                    torch.cat([out.logits for out in outputs]),
                    torch.cat([model.router(out.logits, out.features) for out in outputs]),
                )
            )
        labels = torch.cat([batch.labels for batch in context.eval_loader(dataset.test).epoch(0)])
    logits, router_logits = zip(*found, strict=True)
    return model, torch.stack(logits), torch.stack(router_logits), labels.numpy()


@pytest.mark.parametrize("average", ["logits", pytest.param("probabilities", marks=pytest.mark.slow)])
def test_evaluation_averages_the_views(digits_run_copy, average):
    run = digits_run_copy
    model, _, router_logits, _ = slow_outputs(run)
    model.router.threshold = float(router_logits.mean(dim=0).sigmoid().median())
    save_model(run.model_path, model, load_metadata(run.model_path))
    options = {"evaluation.views": "flip", "evaluation.average": average, "evaluation.temperature": 1.0}
    longtail.evaluate(run, config=longtail.load_recipe(run.config_path, options))
    results = json.loads((run.folder / "results.json").read_text())
    assert results["views"] == "flip"
    found = results["test"]

    model, logits, router_logits, labels = slow_outputs(run)
    used = 1 + (router_logits.mean(dim=0).sigmoid() > model.router.threshold).long().cumprod(dim=1).sum(dim=1).numpy()
    assert len(set(used)) > 1
    # The ensemble of experts and views together.
    rows = logits.numpy()
    every = np.array([slow_ensemble(np.concatenate(rows[:, n]), average) for n in range(len(labels))])
    routed = np.array([slow_ensemble(np.concatenate(rows[:, n, : used[n]]), average) for n in range(len(labels))])
    assert found["nll"] == pytest.approx(-np.log(every[np.arange(len(labels)), labels]).mean(), rel=1e-4)
    assert found["accuracy"] == pytest.approx((every.argmax(axis=1) == labels).mean(), abs=2 / len(labels))
    routing = found["routing"]
    assert routing["accuracy"] == pytest.approx((routed.argmax(axis=1) == labels).mean(), abs=2 / len(labels))
    assert routing["num_views"] == 2
    assert routing["mean_experts"] == pytest.approx(used.mean(), abs=2 / len(labels))
    costs = cost(model, 8)
    assert [prefix["cost"] for prefix in routing["prefixes"]] == [2 * macs for macs in costs.prefix_costs]
    assert routing["cost"] == pytest.approx(2 * np.mean([costs.routed_costs[k - 1] for k in used]), rel=0.01)
    assert collected_views(run) == (1, 2)


def collected_views(run):
    """The number of views of outputs with the run's settings, which an evaluation does not change, and with others."""
    model, _ = run.load_model()
    config = longtail.Run(run.folder).config
    dataset = load_data(config.data)
    context = RunContext(run, config, dataset, Runtime())
    plain, mirrored = context.eval_loader(dataset.val), context.eval_loader(dataset.val, "flip")
    return collect_outputs(model, plain).num_views, collect_outputs(model, mirrored).num_views


def test_budgets_count_all_views(digits_run_copy, capsys):
    """The most expensive threshold for one view is too expensive for two."""
    run = digits_run_copy
    model, metadata = run.load_model()
    most = cost(model, metadata.image_size).routed_costs
    command = ["evaluate", str(run.folder), "--device", "cpu", "--compute_budget", f"{2 * most[0] - 1}"]
    assert main([*command, "--evaluation.views", "flip"]) == 2
    assert "budget" in capsys.readouterr().err
    assert main(command) == 0


def test_views_that_are_equal_are_an_error(digits_run_copy, capsys):
    before = digits_run_copy.results_path.read_bytes()
    assert main(["evaluate", str(digits_run_copy.folder), "--evaluation.views", "ten-crop", "--device", "cpu"]) == 2
    assert "ten-crop" in capsys.readouterr().err
    assert main(["predict", str(digits_run_copy.folder), "--views", "five-crop", "image.png"]) == 2
    assert "five-crop" in capsys.readouterr().err
    assert digits_run_copy.results_path.read_bytes() == before


@pytest.mark.parametrize("options", [[], ["--all_experts"]])
def test_prediction_averages_the_views(digits_run, tmp_path, capsys, options):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    image.save(tmp_path / "image.png")
    command = ["predict", str(digits_run.folder), str(tmp_path / "image.png"), "--device", "cpu", "--views", "flip"]
    assert main([*command, *options]) == 0
    _, row = csv.reader(io.StringIO(capsys.readouterr().out))

    model, metadata = digits_run.load_model()
    assert load_metadata(digits_run.model_path).class_names == metadata.class_names
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    inputs = ((pixels - torch.tensor(metadata.mean)[:, None, None]) / torch.tensor(metadata.std)[:, None, None])[None]
    with torch.no_grad():
        outputs = [model(view) for view in (inputs, inputs.flip(3))]
        router = torch.stack([model.router(out.logits, out.features) for out in outputs]).mean(dim=0)
    used = 3 if options else 1 + int((router.sigmoid() > model.router.threshold).long().cumprod(dim=1).sum())
    logits = torch.cat([out.logits[0, :used] for out in outputs]).mean(dim=0)
    probabilities = (logits / model.temperature).softmax(dim=0)
    assert row[1] == metadata.class_names[int(logits.argmax())]
    assert float(row[2]) == pytest.approx(float(probabilities.max()), abs=1e-4)
