"""Evaluation with class shares that differ from those of training: known ones, and label shift."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from helpers.runs import EXPERTS_ONLY, digits

import longtail
from longtail.cli import main
from longtail.config.recipes import load_recipe
from longtail.data.build import load_data
from longtail.evaluation.label_shift import evaluators
from longtail.evaluation.label_shift.evaluators import evaluate_label_shift
from longtail.evaluation.label_shift.learned_prior import LearnedPrior, learned_prior
from longtail.evaluation.label_shift.subsets import label_shift
from longtail.evaluation.outputs import ModelOutputs, collect_outputs
from longtail.reports.page import write_label_shift
from longtail.reports.tables import label_shift_table
from longtail.runs.context import RunContext
from longtail.runtime.device import Runtime
from longtail.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("no_plots")

SADE = {
    "loss.name": "logit_adjustment",
    "loss.prior_exponents": [0, 1, 1],
    "loss.inverse_exponents": [0, 0, -2],
    "loss.reweight_after": None,
}
COUNTS = [60, 25, 5]


# ---- the prior that experts assume ----


def learned(epoch=60, classifier="", **changes):
    """The prior of a run of 60 epochs with cross-entropy."""
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    return learned_prior(load_recipe("digits-lt-ce", settings), COUNTS, classifier, epoch)


def shares(prior):
    return prior.log_prior.softmax(dim=1).tolist()


def test_experts_assume_the_prior_of_their_sampling_and_loss():
    plain, root = np.array(COUNTS) / 90, np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()
    even = [1 / 3] * 3
    assert shares(learned()) == [pytest.approx(plain)]
    expected = {"instance": plain, "square-root": root, "class-balanced": even, "progressive": even}
    for sampling, prior in expected.items():
        assert shares(learned(training__sampling=sampling)) == [pytest.approx(prior, rel=1e-5)]
    assert shares(learned(loss__name="logit_adjustment")) == [pytest.approx(even)]
    # Balanced softmax with balanced sampling corrects twice.
    twice = learned(loss__name="logit_adjustment", training__sampling="class-balanced")
    assert shares(twice) == [pytest.approx((1 / plain) / (1 / plain).sum(), rel=1e-5)]
    # Other losses do not use the exponents.
    assert shares(learned(loss__prior_exponents=[1.0])) == [pytest.approx(plain)]
    for method in ("retrain", "scale", "tau", "nearest-mean"):
        assert shares(learned(classifier=method)) == [pytest.approx(even)]


def test_class_weights_count_from_the_epoch_of_reweighting():
    plain, beta = np.array(COUNTS) / 90, 0.9
    weighted = plain * (1 - beta) / (1 - beta ** np.array(COUNTS))
    drw = {"loss__reweight_after": 40, "loss__reweight_beta": beta}
    assert shares(learned(epoch=40, **drw)) == [pytest.approx(plain)]
    assert shares(learned(epoch=41, **drw)) == [pytest.approx(weighted / weighted.sum(), rel=1e-5)]
    assert "class weights" in learned(epoch=41, **drw).approximation
    assert learned(epoch=41, **{**drw, "loss__reweight_after": 0}).approximation == ""


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({}, ""),
        ({"loss__name": "logit_adjustment"}, ""),
        ({"training__sampling": "square-root"}, ""),
        ({"loss__name": "ldam"}, "ldam"),
        ({"loss__name": "focal"}, "focal"),
        ({"augmentation__mixup": 0.4}, "mixed"),
        ({"loss__label_smoothing": 0.1}, "smoothed"),
        ({"training__sampling": "progressive"}, "sampling"),
        ({"teacher": "digits-lt-ride"}, "teacher"),
        ({"classifier": "retrain", "loss__name": "ldam"}, ""),
        ({"classifier": "tau"}, "tau"),
    ],
)
def test_reasons_why_a_prior_is_an_approximation(changes, fact):
    approximation = learned(**changes).approximation
    assert fact in approximation
    assert bool(fact) == bool(approximation)


def test_classes_without_training_images():
    with pytest.raises(InputError, match="class 1 "):
        learned_prior(load_recipe("digits-lt-ce"), [5, 0, 3], "retrain", 1)


# ---- the scores ----


def example(seed, sharpness=2.0):
    """Outputs of two experts for 60, 50 and 40 images of three classes. The first expert prefers the common class."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(torch.tensor([60, 50, 40]))[torch.randperm(150, generator=draw)]
    logits = torch.randn(150, 2, 3, generator=draw)
    logits[torch.arange(150), :, labels] += sharpness
    logits[:, 0] += torch.tensor(COUNTS).log()
    return ModelOutputs(logits, labels)


def test_scores_equal_a_loop_over_images():
    """With probabilities instead of logarithms."""
    outputs = example(0)
    logits, labels = outputs.logits, outputs.labels
    views = logits + 0.1, logits - 0.1 * torch.randn(150, 2, 3, generator=torch.Generator().manual_seed(9))
    prior = torch.tensor([COUNTS, [1, 1, 1]]).double()
    report = evaluate_label_shift(outputs, COUNTS, LearnedPrior(prior.log().float(), ""), views, (50, 20, 2))
    names = ["forward-20", "forward-2", "uniform", "backward-2", "backward-20"]
    assert [row.distribution for row in report.rows] == names
    assert report.left_out == (50,)
    for row in report.rows:
        kind, _, ratio = row.distribution.partition("-")
        direction = "backward" if kind == "backward" else "forward"
        subset = label_shift(labels.numpy(), COUNTS, float(ratio or 1), direction)
        assert row.num_images == len(subset.positions)
        assert row.weights is not None
        correct = {"mean": 0, "known": 0, "aggregated": 0, 0: 0, 1: 0}
        for position in subset.positions.tolist():
            experts, label = logits[position].double(), labels[position]
            correct["mean"] += int(experts.mean(dim=0).argmax() == label)
            correct["aggregated"] += int((torch.tensor(row.weights).double() @ experts).argmax() == label)
            bayes = torch.ones(3).double()
            for expert in (0, 1):
                correct[expert] += int(experts[expert].argmax() == label)
                adjusted = experts[expert].softmax(dim=0) / prior[expert] * torch.from_numpy(subset.prior)
                bayes *= (adjusted / adjusted.sum()).sqrt()
            correct["known"] += int(bayes.argmax() == label)
        numbers = [row.mean, row.known_prior, row.aggregated, *row.experts]
        assert numbers == pytest.approx([number / row.num_images for number in correct.values()])
    by_name = {row.distribution: row for row in report.rows}
    assert by_name["backward-20"].known_prior > by_name["backward-20"].mean
    assert sum(by_name["uniform"].weights) == pytest.approx(1)


def one_expert(outputs):
    return outputs._replace(logits=outputs.logits[:, :1])


def test_one_expert_has_no_weights():
    report = evaluate_label_shift(one_expert(example(1)), COUNTS, LearnedPrior(torch.zeros(1, 3), "x"), None, (2,))
    assert {(row.aggregated, row.weights) for row in report.rows} == {(None, None)}
    assert json.loads(json.dumps(asdict(report)))["approximation"] == "x"


def test_the_page_explains_only_its_columns(tmp_path):
    outputs, prior = example(1), torch.zeros(1, 3)
    several = evaluate_label_shift(outputs, COUNTS, LearnedPrior(prior, "x"), (outputs.logits,) * 2, (2,))
    single = evaluate_label_shift(one_expert(outputs), COUNTS, LearnedPrior(prior, ""), None, (2,))
    for report, has_ensemble in ((several, True), (single, False)):
        write_label_shift(tmp_path, label_shift_table(report, "title", with_weights=True))
        page = (tmp_path / "label_shift.md").read_text()
        assert page.startswith("# title\n")
        assert ("| ensemble |" in page, "| model |" in page) == (has_ensemble, not has_ensemble)
        for note in ("- Ensemble:", "- Aggregated:", "- Weights:", "- Aggregation is for", "approximate: x"):
            assert (note in page) == has_ensemble
        assert "- Forward-50: " in page


def test_too_few_images():
    outputs = example(2)
    firsts = torch.tensor([int((outputs.labels == label).nonzero()[0]) for label in range(3)])
    outputs = ModelOutputs(outputs.logits[firsts], outputs.labels[firsts])
    with pytest.raises(InputError, match=r"has 1 .* 2 "):
        evaluate_label_shift(outputs, COUNTS, LearnedPrior(torch.zeros(1, 3), ""), None)


# ---- of a run ----


def context_of(run):
    return RunContext(run, run.config, load_data(run.config.data), Runtime())


def results(run, name="results.json"):
    return json.loads((run.folder / name).read_text())


def evaluate(run, *options):
    return main(["evaluate", str(run.folder), "--device", "cpu", *map(str, options)])


def test_uniform_prior(digits_run_copy, capsys):
    run = digits_run_copy
    before = run.model_path.read_bytes()
    assert evaluate(run, "--prior", "uniform") == 0
    assert "equally common" in " ".join(capsys.readouterr().out.split())
    found = results(run, "prior.json")
    assert found["prior"] == [pytest.approx(0.1)] * 10
    assert found["split"] == "test"
    assert "ride" in found["approximation"]
    assert found["num_images"] == 600
    assert run.model_path.read_bytes() == before


def test_invalid_priors_are_found_before_the_evaluation(digits_run_copy, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("longtail.reports.results.evaluate_splits", None)
    (tmp_path / "prior.txt").write_text("1 2")
    assert evaluate(digits_run_copy, "--prior", tmp_path / "prior.txt") == 2
    assert "2 numbers for 10 classes" in capsys.readouterr().err


def test_label_shift_of_a_run(digits_run_copy, capsys, monkeypatch):
    """The results equal those of outputs that are computed here; the two views are augmented and differ."""
    run, views = digits_run_copy, []
    monkeypatch.setattr(
        evaluators, "collect_outputs", lambda *arguments: views.append(collect_outputs(*arguments)) or views[-1]
    )
    assert evaluate(run, "--label_shift") == 0
    out = capsys.readouterr().out
    for word in ("forward-50", "uniform", "backward-2", "ensemble", "aggregated", "expert", "label_shift.md"):
        assert word in out
    found = results(run, "label_shift.json")
    context, (model, metadata) = context_of(run), run.load_model()
    outputs = collect_outputs(model, context.eval_loader(context.dataset.test))
    first, second = views
    for view in views:
        assert torch.equal(view.labels, outputs.labels)
        assert not torch.equal(view.logits, outputs.logits)
    assert not torch.equal(first.logits, second.logits)
    prior = learned_prior(run.config, metadata.class_counts, "", metadata.epoch)
    expected = asdict(evaluate_label_shift(outputs, metadata.class_counts, prior, (first.logits, second.logits)))
    for row, other in zip(found["rows"], json.loads(json.dumps(expected))["rows"], strict=True):
        assert row.pop("weights") == pytest.approx(other.pop("weights"), abs=1e-5)
        assert row.pop("aggregated") == pytest.approx(other.pop("aggregated"), abs=0.01)
        assert row == other
    assert len(found["rows"]) == 11
    uniform = found["rows"][5]
    assert uniform["distribution"] == "uniform"
    assert uniform["mean"] == results(run)["test"]["accuracy"]
    page = (run.folder / "label_shift.md").read_text()
    assert page.count("| backward-") == 5
    assert f"{100 * uniform['mean']:.1f}" in page


@pytest.mark.slow
def test_a_known_prior_changes_predictions_by_bayes_rule(tmp_path, capsys):
    run = longtail.train(digits({**EXPERTS_ONLY, **SADE, "training.epochs": 12}), tmp_path / "sade")
    model, metadata = run.load_model()
    counts = metadata.class_counts
    (tmp_path / "prior.txt").write_text("\n".join(map(str, counts)))
    assert evaluate(run, "--prior", tmp_path / "prior.txt", "--label_shift") == 0
    assert "trained for the same" not in capsys.readouterr().out  # SADE's experts assume different priors
    found = results(run, "prior.json")
    assert found["prior"] == pytest.approx((np.array(counts) / sum(counts)).tolist())
    assert found["approximation"] == ""
    context = context_of(run)
    outputs = collect_outputs(model, context.eval_loader(context.dataset.test))
    prior = torch.tensor(counts).double() / sum(counts)
    inverse = prior.flip(0)  # the counts of the digits fall
    logits = outputs.logits.double()
    logits[:, 1] += prior.log()  # the first expert assumes the prior, the second equally common classes
    logits[:, 2] += prior.log() - 2 * inverse.log()  # the third assumes 1 / inverse^-2
    expected = (logits.mean(dim=1).argmax(dim=1) == outputs.labels).double().mean().item()
    assert found["accuracy"] == pytest.approx(expected, abs=1.5 / 600)
    assert found["accuracy"] != results(run)["test"]["accuracy"]
    weights = results(run, "label_shift.json")["rows"][5]["weights"]
    assert math.isclose(sum(weights), 1, abs_tol=1e-5)
