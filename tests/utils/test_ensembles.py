"""What of the experts is averaged: the arithmetic against loops, and that a run's every answer follows one rule."""

import csv
import io
import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.routing import route_outputs
from PIL import Image

import longtail
from longtail.cli import main
from longtail.config.recipes import load_recipe
from longtail.data import build as data_build
from longtail.evaluation.label_shift.evaluators import evaluate_label_shift
from longtail.evaluation.label_shift.learned_prior import LearnedPrior
from longtail.evaluation.label_shift.subsets import label_shift
from longtail.evaluation.metrics import evaluate_logits
from longtail.evaluation.outputs import ModelOutputs, collect_outputs
from longtail.losses import router_targets
from longtail.models.multi_expert import create_model
from longtail.models.router import experts_used
from longtail.runs.context import RunContext
from longtail.runs.model_file import load_metadata, load_model
from longtail.runs.run import Run
from longtail.runtime.device import Runtime
from longtail.utils.ensembles import AVERAGES, ensemble, partial_ensembles, weighted_ensemble
from longtail.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("no_plots")

COUNTS = [120, 60, 10, 5]


# ---- slow versions ----


def slow_softmax(row) -> np.ndarray:
    powers = np.exp(np.asarray(row, dtype=np.float64) - max(row))
    return powers / powers.sum()


def slow_mean(experts, average: str) -> np.ndarray:
    """Probabilities (C,) of the ensemble of some experts' logits (E, C), for one image."""
    rows = np.asarray(experts, dtype=np.float64)
    if average == "logits":
        return slow_softmax(sum(rows) / len(rows))
    return sum(slow_softmax(row) for row in rows) / len(rows)


def said(images=40, experts=3, classes=4) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of experts that differ in how sure they are, so that the averages differ; and labels."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(images, experts, classes, generator=draw) * torch.tensor([6.0, 1, 2])[:, None]
    return logits, torch.randint(0, classes, (images,), generator=draw)


# ---- the arithmetic ----


@pytest.mark.parametrize("average", AVERAGES)
def test_ensembles(average):
    logits, _ = said()
    whole, parts = ensemble(logits, average), partial_ensembles(logits, average)
    equal = weighted_ensemble(logits, torch.full((3,), 1 / 3), average)
    for image, experts in enumerate(logits.numpy()):
        for number in (1, 2, 3):
            expected = slow_mean(experts[:number], average)
            assert parts[image, number - 1].softmax(0).numpy() == pytest.approx(expected, abs=1e-6)
        for own in (whole, equal):
            assert own[image].softmax(0).numpy() == pytest.approx(expected, abs=1e-6)
    if average == "probabilities":
        torch.testing.assert_close(whole.exp().sum(dim=1), torch.ones(len(whole)))


def test_the_averages_differ_and_logits_are_the_default():
    logits, _ = said()
    by_logits, by_probabilities = (ensemble(logits, average).argmax(1) for average in AVERAGES)
    assert (by_logits != by_probabilities).any()
    assert torch.equal(ensemble(logits), logits.mean(dim=1))
    assert torch.equal(partial_ensembles(logits), partial_ensembles(logits, "logits"))


def test_probabilities_too_small_for_a_float_keep_their_order():
    logits = torch.tensor([[[0.0, -300, -400], [0.0, -310, -390]]])
    found = ensemble(logits, "probabilities")
    assert found.argsort(dim=1, descending=True).tolist() == [[0, 1, 2]]
    assert found[0].tolist() == pytest.approx([0, -300 - math.log(2), -390 - math.log(2)], abs=1e-3)


@pytest.mark.parametrize("average", AVERAGES)
def test_metrics_and_router_targets(average):
    logits, labels = said()
    found = evaluate_logits(logits, labels, COUNTS, average=average)
    rows = np.array([slow_mean(experts, average) for experts in logits.numpy()])
    right = rows.argmax(1) == labels.numpy()
    assert found.accuracy == pytest.approx(right.mean())
    assert found.nll == pytest.approx(np.mean([-math.log(row[k]) for row, k in zip(rows, labels, strict=True)]))
    sure, gap = rows.max(1), 0.0
    for number in range(15):
        own = (sure > number / 15) & (sure <= (number + 1) / 15)
        gap += abs(right[own].sum() - sure[own].sum())
    assert found.ece == pytest.approx(gap / len(rows), abs=1e-6)
    for image, target in enumerate(router_targets(logits, labels, average).tolist()):
        hits = [slow_mean(logits[image, :k].numpy(), average).argmax() == labels[image] for k in (1, 2, 3)]
        assert target == [not hits[0] and (hits[1] or hits[2]), not hits[1] and hits[2]]


@pytest.mark.parametrize("average", AVERAGES)
def test_label_shift(average):
    logits, labels = said(200)
    prior = np.array(COUNTS) / sum(COUNTS)
    learned, views = LearnedPrior(torch.from_numpy(prior).log().float()[None], ""), (logits, logits.flip(0))
    outputs = ModelOutputs(logits, labels, average=average)
    report = evaluate_label_shift(outputs, COUNTS, learned, views, (10,))
    for row in report.rows:
        kind, _, ratio = row.distribution.partition("-")
        part = label_shift(labels.numpy(), COUNTS, float(ratio or 1), "backward" if kind == "backward" else "forward")
        right = np.zeros(3)
        for position in part.positions:
            experts, weights = logits[position].double().numpy(), np.array(row.weights)
            adjusted = experts - np.log(prior) + np.log(part.prior)
            weighted = weights @ (experts if average == "logits" else [slow_softmax(own) for own in experts])
            said_of_it = slow_mean(experts, average), slow_mean(adjusted, average), weighted
            right += [answer.argmax() == labels[position] for answer in said_of_it]
        assert [row.mean, row.known_prior, row.aggregated] == pytest.approx((right / row.num_images).tolist())


@pytest.mark.parametrize("average", AVERAGES)
@torch.no_grad()
def test_models_route_and_answer_by_their_average(average):
    torch.manual_seed(0)
    model = create_model("resnet20", 4, 3, router={}, average=average).eval()
    for number, head in enumerate(model.heads):
        head.scale = (200.0, 5.0, 40.0)[number]
    images = torch.randn(12, 3, 8, 8)
    output = model(images)
    steps = model.router(output.logits, output.features)
    thresholds = steps.sigmoid().median(dim=0).values.tolist()
    routed = model.route(images, thresholds)
    assert torch.equal(routed.experts_used, experts_used(steps, thresholds))  # whatever is averaged
    assert len(set(routed.experts_used.tolist())) > 1
    again = route_outputs(output.logits, steps, thresholds, average)
    torch.testing.assert_close(routed.logits, again.logits)
    answered = model.predict_logits(images)
    for image, used in enumerate(routed.experts_used.tolist()):
        experts = output.logits[image].numpy()
        expected = slow_mean(experts[:used], average)
        assert routed.logits[image].softmax(0).numpy() == pytest.approx(expected, abs=1e-5)
        assert answered[image].softmax(0).numpy() == pytest.approx(slow_mean(experts, average), abs=1e-5)


def test_unknown_averages_are_refused():
    with pytest.raises(InputError, match=r"'logit'.*logits, probabilities.*did you mean 'logits'"):
        create_model("resnet20", 4, average="logit")


# ---- of a run, from the command line ----


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """Experts that differ, with a router whose threshold was chosen; the recipe's losses, few epochs."""
    changes = {"training.epochs": 8, "router.epochs": 4, "device": "cpu", "router.max_accuracy_drop": 2.0}
    return longtail.train(load_recipe("digits-lt-ride", changes), tmp_path_factory.mktemp("runs") / "logits")


@pytest.fixture
def run(trained, tmp_path) -> Run:
    """A copy to change."""
    return Run(shutil.copytree(trained.folder, tmp_path / "copy"))


def results(run: Run) -> dict:
    """Of the test part, without what a clock measured, and where the threshold comes from."""
    found = json.loads((run.folder / "results.json").read_text())["test"]
    for name in ("images_per_second", "chosen_on"):
        del found["routing"][name]
    return found


def evaluate(run: Run, *options: str) -> None:
    assert main(["evaluate", str(run.folder), "--device", "cpu", *options]) == 0


def test_a_run_follows_one_rule_everywhere(run, tmp_path, capsys):
    before = {path.name: path.read_bytes() for path in (run.model_path, run.config_path)}
    by_logits = results(run)
    evaluate(run, "--evaluation.average", "probabilities", "--label_shift")
    out = " ".join(capsys.readouterr().out.split())
    assert "Ensemble: mean of the experts' probabilities" in out
    assert f"longtail router {run.folder}" in out.replace("\n", " ")
    run = Run(run.folder)
    assert (load_model(run.folder).average, run.config.evaluation.average) == ("probabilities", "probabilities")
    assert load_metadata(run.model_path).threshold_for == ""
    found = results(run)

    # Everything anew from what the experts say, with loops.
    model, _ = run.load_model()
    dataset = data_build.load_data(run.config.data)
    context = RunContext(run, run.config, dataset, Runtime())
    given = collect_outputs(model, context.eval_loader(dataset.test))
    rows, labels = given.logits.numpy(), given.labels.numpy()
    parts = np.array([[slow_mean(row[:k], "probabilities") for k in (1, 2, 3)] for row in rows])
    right = parts.argmax(axis=2) == labels[:, None]
    assert found["accuracy"] == pytest.approx(right[:, 2].mean())
    assert found["nll"] == pytest.approx(-np.log(parts[np.arange(len(labels)), 2, labels]).mean(), rel=1e-5)
    assert found["nll"] != pytest.approx(by_logits["nll"], rel=1e-3)
    assert found["experts"] == by_logits["experts"]
    prefixes = [prefix["accuracy"] for prefix in found["routing"]["prefixes"]]
    assert prefixes == pytest.approx(right.mean(axis=0).tolist())
    used = experts_used(given.router_logits, model.router.threshold).numpy()
    assert found["routing"]["shares"] == by_logits["routing"]["shares"]
    assert found["routing"]["accuracy"] == pytest.approx(right[np.arange(len(labels)), used - 1].mean())
    shift = json.loads((run.folder / "label_shift.json").read_text())
    assert shift["average"] == "probabilities"
    assert shift["rows"][5]["mean"] == found["accuracy"]

    # Pictures are answered as they were tested.
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    picture.save(tmp_path / "picture.png")
    for options in ([], ["--all_experts"]):
        assert main(["predict", str(run.folder), str(tmp_path / "picture.png"), "--device", "cpu", *options]) == 0
        _, row = csv.reader(io.StringIO(capsys.readouterr().out))
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        metadata = load_metadata(run.model_path)
        image = (pixels - torch.tensor(metadata.mean)[:, None, None]) / torch.tensor(metadata.std)[:, None, None]
        with torch.no_grad():
            experts = model(image[None]).logits[0].numpy()
            asked = 3 if options else int(model.route(image[None]).experts_used)
        assert float(row[2]) == pytest.approx(slow_mean(experts[:asked], "probabilities").max(), abs=1e-3)

    # It stays so, and can be taken back.
    evaluate(run)
    assert results(run) == found
    assert (run.folder / "label_shift.json").is_file()
    evaluate(run, "--evaluation.average", "logits")
    assert results(run) == by_logits
    assert not (run.folder / "label_shift.json").exists()
    assert run.config_path.read_bytes() == before["config.yaml"]
    assert torch.equal(load_model(run.folder).heads[0].weight, model.heads[0].weight)


def test_thresholds_are_chosen_for_what_is_averaged(run, monkeypatch):
    asked = []
    original = longtail.evaluation.routing.prefix_predictions
    monkeypatch.setattr(
        "longtail.training.router.prefix_predictions", lambda logits, average: asked.append(average) or original(logits)
    )
    evaluate(run, "--evaluation.average", "probabilities", "--max_accuracy_drop", "1")
    metadata = load_metadata(run.model_path)
    assert asked == ["probabilities"]
    assert (metadata.architecture["average"], metadata.threshold_for) == ("probabilities", "max_accuracy_drop 1")
    assert Run(run.folder).config.evaluation.average == "probabilities"


def test_other_classifiers_and_routers_keep_it(run):
    evaluate(run, "--evaluation.average", "probabilities")
    quick = ["--device", "cpu", "--router.epochs", "1"]
    assert main(["classifier", str(run.folder), "--device", "cpu", "--classifier.method", "nearest-mean"]) == 0
    assert load_model(run.folder).average == "probabilities"
    assert main(["router", str(run.folder), *quick, "--evaluation.average", "logits"]) == 0
    again = Run(run.folder)
    assert (load_model(again.folder).average, again.config.evaluation.average) == ("logits", "logits")


def test_a_run_that_is_trained_with_it(tmp_path):
    changes = {"training.epochs": 1, "router.train": False, "router.max_accuracy_drop": None, "device": "cpu"}
    config = load_recipe("digits-lt-ride", {**changes, "evaluation.average": "probabilities"})
    run = longtail.train(config, tmp_path / "run")
    assert longtail.load_model(run.folder).average == "probabilities"
    plain = longtail.train(replace(config, evaluation=replace(config.evaluation, average="logits")), tmp_path / "plain")
    one, other = (longtail.load_model(own.folder).state_dict() for own in (run, plain))
    assert all(torch.equal(value, other[name]) for name, value in one.items())  # training knows nothing of it
    assert "average" not in load_metadata(plain.model_path).architecture


def test_unfinished_runs_are_not_changed(run, capsys):
    (run.folder / "results.json").unlink()
    before = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    options = ["--device", "cpu", "--evaluation.average", "probabilities"]
    assert main(["evaluate", str(run.folder), *options]) == 2
    assert "is not finished, and averages the experts' logits" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before
