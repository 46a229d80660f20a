"""Tests where classes are not as common as in training: a known prior, and label shift."""

import json
import math

import numpy as np
import pytest
import torch

import longtail
from longtail import api
from longtail.cli import main
from longtail.config.recipes import load_recipe
from longtail.data import build as data_build
from longtail.evaluation.label_shift import evaluators
from longtail.evaluation.label_shift.report import LabelShiftReport, LearnedPrior
from longtail.evaluation.label_shift.subsets import label_shift
from longtail.evaluation.outputs import collect_outputs
from longtail.models import build as model_build
from longtail.reports.page import write_label_shift
from longtail.runtime.device import Runtime
from longtail.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("no_plots")

SADE = {"loss.name": "logit_adjustment", "loss.prior_exponents": [0, 1, 1], "loss.inverse_exponents": [0, 0, -2],
        "loss.reweight_after": None}  # fmt: skip
COUNTS = [60, 25, 5]


# ---- what experts have learned ----


def learned(epoch: int = 60, classifier: str = "", **changes) -> LearnedPrior:
    """Of the digits' recipe for cross-entropy, with 60 epochs."""
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    return model_build.learned_prior(load_recipe("digits-lt-ce", settings), COUNTS, classifier, epoch)


def shares(found: LearnedPrior) -> list[list[float]]:
    return found.log_prior.softmax(dim=1).tolist()


def test_experts_learn_the_prior_of_their_draws_and_losses():
    plain, root = np.array(COUNTS) / 90, np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()
    even = [1 / 3] * 3
    assert shares(learned()) == [pytest.approx(plain)]
    for sampling, expected in {
        "instance": plain,
        "square-root": root,
        "class-balanced": even,
        "progressive": even,
    }.items():
        assert shares(learned(training__sampling=sampling)) == [pytest.approx(expected, rel=1e-5)]
    balanced = learned(loss__name="logit_adjustment")
    assert shares(balanced) == [pytest.approx(even)]
    # Balanced softmax on draws that are balanced already overdoes it.
    twice = learned(loss__name="logit_adjustment", training__sampling="class-balanced")
    assert shares(twice) == [pytest.approx((1 / plain) / (1 / plain).sum(), rel=1e-5)]
    # Exponents of other losses are not used.
    assert shares(learned(loss__prior_exponents=[1.0])) == [pytest.approx(plain)]
    for method in ("retrain", "scale", "tau", "nearest-mean"):
        assert shares(learned(classifier=method)) == [pytest.approx(even)]


def test_class_weights_count_once_they_are_there():
    plain, beta = np.array(COUNTS) / 90, 0.9
    weighted = plain * (1 - beta) / (1 - beta ** np.array(COUNTS))
    drw = {"loss__reweight_after": 40, "loss__reweight_beta": beta}
    assert shares(learned(epoch=40, **drw)) == [pytest.approx(plain)]
    assert shares(learned(epoch=41, **drw)) == [pytest.approx(weighted / weighted.sum(), rel=1e-5)]
    assert learned(epoch=41, **drw).approximation == "class weights came late in training"
    assert learned(epoch=41, **{**drw, "loss__reweight_after": 0}).approximation == ""


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({}, ""),
        ({"loss__name": "logit_adjustment"}, ""),
        ({"training__sampling": "square-root"}, ""),
        ({"loss__name": "ldam"}, "the ldam loss does not make the answers probabilities"),
        ({"loss__name": "focal"}, "the focal loss"),
        ({"augmentation__mixup": 0.4}, "targets were mixed or smoothed"),
        ({"loss__label_smoothing": 0.1}, "targets were mixed or smoothed"),
        ({"training__sampling": "progressive"}, "draws became class-balanced late"),
        ({"teacher": "digits-lt-ride"}, "a teacher was followed"),
        ({"classifier": "retrain", "loss__name": "ldam"}, ""),
        ({"classifier": "tau"}, "classifiers of method tau yield no probabilities"),
    ],
)
def test_what_is_an_approximation_says_so(changes, doubt):
    found = learned(**changes).approximation
    assert found.startswith(doubt)
    assert bool(found) == bool(doubt)


def test_classes_without_training_images():
    with pytest.raises(InputError, match="class 1 has no training images"):
        model_build.learned_prior(load_recipe("digits-lt-ce"), [5, 0, 3], "retrain", 1)


# ---- the table ----


def said(seed: int, sharp: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """ModelOutputs of two experts to 60, 50 and 40 images of three classes; the first is biased to the common class."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(torch.tensor([60, 50, 40]))[torch.randperm(150, generator=draw)]
    logits = torch.randn(150, 2, 3, generator=draw)
    logits[torch.arange(150), :, labels] += sharp
    logits[:, 0] += torch.tensor(COUNTS).log()
    return logits, labels


def test_every_number_of_the_table_by_hand():
    """With loops over images, probabilities and no logarithm of a prior."""
    logits, labels = said(0)
    views = logits + 0.1, logits - 0.1 * torch.randn(150, 2, 3, generator=torch.Generator().manual_seed(9))
    prior = torch.tensor([COUNTS, [1, 1, 1]]).double()
    report = LabelShiftReport.of(logits, labels, COUNTS, LearnedPrior(prior.log().float(), ""), views, (50, 20, 2))
    assert [row.distribution for row in report.rows] == [
        "forward-20", "forward-2", "uniform", "backward-2", "backward-20",
    ]  # fmt: skip
    assert report.left_out == (50,)
    for row in report.rows:
        kind, _, ratio = row.distribution.partition("-")
        part = label_shift(
            labels.numpy(), COUNTS, float(ratio or 1), "backward" if kind == "backward" else "forward", 0
        )
        assert row.num_images == len(part.positions)
        assert row.weights is not None
        right = {"mean": 0, "known": 0, "aggregated": 0, 0: 0, 1: 0}
        for position in part.positions.tolist():
            experts, label = logits[position].double(), labels[position]
            right["mean"] += int(experts.mean(dim=0).argmax() == label)
            right["aggregated"] += int((torch.tensor(row.weights).double() @ experts).argmax() == label)
            bayes = torch.ones(3).double()
            for expert in (0, 1):
                right[expert] += int(experts[expert].argmax() == label)
                own = experts[expert].softmax(dim=0) / prior[expert] * torch.from_numpy(part.prior)
                bayes *= (own / own.sum()).sqrt()
            right["known"] += int(bayes.argmax() == label)
        numbers = [row.mean, row.known_prior, row.aggregated, *row.experts]
        assert numbers == pytest.approx([number / row.num_images for number in right.values()])
    by_name = {row.distribution: row for row in report.rows}
    assert by_name["backward-20"].known_prior > by_name["backward-20"].mean
    assert sum(by_name["uniform"].weights) == pytest.approx(1)


def test_one_expert_has_nothing_to_weigh():
    logits, labels = said(1)
    report = LabelShiftReport.of(logits[:, :1], labels, COUNTS, LearnedPrior(torch.zeros(1, 3), "x"), None, (2,))
    assert {(row.aggregated, row.weights) for row in report.rows} == {(None, None)}
    assert json.loads(json.dumps(report.as_dict()))["approximation"] == "x"


def test_what_the_page_explains(tmp_path):
    """Only what its columns show; a model of one expert is no ensemble."""
    logits, labels = said(1)
    alike, single = LearnedPrior(torch.zeros(1, 3), "x"), LearnedPrior(torch.zeros(1, 3), "")
    for learned, own, views in ((alike, logits, (logits, logits)), (single, logits[:, :1], None)):
        write_label_shift(tmp_path, LabelShiftReport.of(own, labels, COUNTS, learned, views, (2,)), "title")
        page = (tmp_path / "label_shift.md").read_text()
        assert ("| ensemble |" in page, "| model |" in page) == (views is not None, views is None)
        for word in ("- Ensemble:", "- Aggregated:", "- Weights: of expert", "- Weights help", "- The adjustment is"):
            assert (word in page) == (views is not None)
        assert "- Forward-50: " in page


def test_too_few_images_are_refused():
    logits, labels = said(2)
    one_each = torch.tensor([int((labels == label).nonzero()[0]) for label in range(3)])
    with pytest.raises(InputError, match="a class has 1 of the images; for label shift each must have 2 at least"):
        LabelShiftReport.of(logits[one_each], labels[one_each], COUNTS, LearnedPrior(torch.zeros(1, 3), ""), None)


# ---- of a run ----


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = load_recipe("digits-lt-ride", {**SADE, "training.epochs": 12, "router.train": False, "device": "cpu"})
    return longtail.train(config, tmp_path_factory.mktemp("runs") / "sade")


def test_a_known_prior_changes_answers_by_bayes_rule(run, tmp_path, capsys):
    counts = run.load_model()[1].class_counts
    (tmp_path / "prior.txt").write_text("\n".join(map(str, counts)))
    before = run.model_path.read_bytes()
    assert main(["evaluate", str(run.folder), "--device", "cpu", "--prior", str(tmp_path / "prior.txt")]) == 0
    assert "adjusted to the prior of" in capsys.readouterr().out.replace("\n", " ")
    found = json.loads((run.folder / "prior.json").read_text())
    assert found["prior"] == pytest.approx((np.array(counts) / sum(counts)).tolist())
    dataset = data_build.load_data(run.config)
    model, _ = run.load_model()
    given = collect_outputs(model, data_build.eval_loader(run.config, dataset, dataset.test, Runtime()))
    shares = torch.tensor(counts).double() / sum(counts)
    inverse = shares.flip(0)  # the digits' counts fall
    logits = given.logits.double()
    logits[:, 0] += 0  # cross-entropy learned the very prior
    logits[:, 1] += shares.log()
    logits[:, 2] += shares.log() + shares.log() - shares.log() - 2 * inverse.log() + shares.log() - shares.log()
    # The third learned pi / (pi * inverse^-2): take that away, and the test prior to it.
    logits[:, 2] = given.logits[:, 2].double() - 2 * inverse.log() + shares.log()
    expected = (logits.mean(dim=1).argmax(dim=1) == given.labels).double().mean().item()
    assert found["accuracy"] == pytest.approx(expected, abs=1.5 / 600)
    assert found["accuracy"] != json.loads((run.folder / "results.json").read_text())["test"]["accuracy"]
    assert found["approximation"] == ""
    assert run.model_path.read_bytes() == before


def test_bad_priors_are_refused_before_anything_is_tested(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(api, "evaluate_splits", None)
    (tmp_path / "prior.txt").write_text("1 2")
    assert main(["evaluate", str(run.folder), "--device", "cpu", "--prior", str(tmp_path / "prior.txt")]) == 2
    assert "2 numbers for 10 classes" in capsys.readouterr().err


def test_label_shift_of_a_run(run, capsys, monkeypatch):
    """As from answers of one's own; the views are augmented and differ."""
    views = []
    original = evaluators.answers
    monkeypatch.setattr(evaluators, "answers", lambda *a: views.append(original(*a)) or views[-1])
    assert main(["evaluate", str(run.folder), "--device", "cpu", "--label_shift"]) == 0
    out = capsys.readouterr().out
    for word in (
        "forward-50",
        "uniform",
        "backward-2",
        "ensemble",
        "aggregated",
        "expert 3",
        "with the experts' weights",
    ):
        assert word in out
    assert "Weights help" not in out  # SADE's experts learned each another prior
    found = json.loads((run.folder / "label_shift.json").read_text())
    assert len(found["rows"]) == 11
    dataset, (model, metadata) = data_build.load_data(run.config), run.load_model()
    given = collect_outputs(model, data_build.eval_loader(run.config, dataset, dataset.test, Runtime()))
    assert len(views) == 2
    for view in views:
        assert torch.equal(view.labels, given.labels)
        assert not torch.equal(view.logits, given.logits)
    assert not torch.equal(views[0].logits, views[1].logits)
    learned = model_build.learned_prior(run.config, metadata.class_counts, "", metadata.epoch)
    again = LabelShiftReport.of(
        given.logits, given.labels, metadata.class_counts, learned, (views[0].logits, views[1].logits)
    )
    assert found["rows"] == json.loads(json.dumps(again.as_dict()))["rows"]
    uniform = found["rows"][5]
    assert uniform["distribution"] == "uniform"
    assert uniform["mean"] == json.loads((run.folder / "results.json").read_text())["test"]["accuracy"]
    assert math.isclose(sum(uniform["weights"]), 1, abs_tol=1e-5)
    page = (run.folder / "label_shift.md").read_text()
    assert page.count("| backward-") == 5
    assert "- Weights: of expert 1, 2, ... in the aggregated answers." in page
    assert f"{100 * uniform['mean']:.1f}" in page
