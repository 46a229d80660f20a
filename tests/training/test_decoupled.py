"""Other classifiers for trained experts: what they are, what stays, and how a run comes by them."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import longtail
from longtail import api
from longtail.config.recipes import load_recipe
from longtail.config.schema import Config
from longtail.data import build as data_build
from longtail.evaluation.outputs import collect_outputs, evaluate_outputs
from longtail.models.multi_expert import create_model
from longtail.runs.model_file import ModelMetadata, load_metadata, save_model
from longtail.runs.run import Run
from longtail.runtime.device import Runtime
from longtail.training import frozen
from longtail.training.experts import Experts
from longtail.training.tasks import TrainHeads
from longtail.utils.errors import InputError
from longtail.utils.files import write_tensors

pytestmark = pytest.mark.usefixtures("no_plots")

METHODS = ("retrain", "scale", "tau", "nearest-mean")
SHORT = {"training.epochs": 10, "device": "cpu", "classifier.epochs": 6, "classifier.views": 2, "router.epochs": 2}


def digits(**changes) -> Config:
    """Two experts with linear heads."""
    base = {"model.num_experts": 2, "model.head": "linear", "router.train": False, "router.max_accuracy_drop": None}
    return load_recipe("digits-lt-ce", {**SHORT, **base, **{name.replace("__", "."): v for name, v in changes.items()}})


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    return longtail.train(digits(), tmp_path_factory.mktemp("runs") / "experts")


@pytest.fixture
def run(trained, tmp_path) -> Run:
    """A copy to change."""
    return Run(shutil.copytree(trained.folder, tmp_path / "copy"))


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.model_path)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def change(run: Run, **settings) -> None:
    api.retrain_classifier(run, config=replace(run.config, classifier=replace(run.config.classifier, **settings)))


# ---- what the classifiers are ----


@pytest.mark.parametrize("method", METHODS)
def test_only_the_heads_change(run, trained, method):
    """Bit for bit, running statistics too; and the run can be tested, and says what it has."""
    before, results = weights(run), json.loads((run.folder / "results.json").read_text())
    change(run, method=method)
    after = weights(run)
    parts = [{n: v for n, v in w.items() if not n.startswith("heads.")} for w in (before, after)]
    assert same(*parts)
    assert not torch.equal(after["heads.0.weight"], before["heads.0.weight"])
    assert run.classifier == run.config.classifier.method == method
    assert replace(run.config, classifier=trained.config.classifier) == trained.config
    assert json.loads((run.folder / "classifier.json").read_text())["method"] == method
    again = longtail.evaluate(run)
    assert again.accuracy == json.loads((run.folder / "results.json").read_text())["test"]["accuracy"]
    assert again.accuracy != results["test"]["accuracy"]


def test_retrained_heads_are_drawn_anew_and_learn(run):
    before = weights(run)
    change(run, method="retrain")
    first = weights(run)
    epochs = json.loads((run.folder / "classifier.json").read_text())["epochs"]
    assert len(epochs) == 6
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    for expert in (0, 1):
        cosines = F.cosine_similarity(first[f"heads.{expert}.weight"], before[f"heads.{expert}.weight"])
        assert cosines.mean() < 0.9
    assert not torch.equal(first["heads.0.weight"], first["heads.1.weight"])
    change(run, method="retrain")
    assert same(first, weights(run))


def test_scaled_heads_keep_their_directions(run):
    before = weights(run)
    change(run, method="scale")
    after = weights(run)
    for expert in (0, 1):
        own, new = (w[f"heads.{expert}.weight"] for w in (before, after))
        scales = (own * new).sum(dim=1) / own.square().sum(dim=1)
        assert scales.std() > 1e-3
        torch.testing.assert_close(new, scales[:, None] * own)
        torch.testing.assert_close(after[f"heads.{expert}.bias"], scales * before[f"heads.{expert}.bias"])


def test_the_loss_of_heads_is_that_of_each_by_itself():
    """Cross-entropy by hand; nothing comes from the experts' own logits."""
    torch.manual_seed(0)
    heads = [torch.nn.Linear(5, 4) for _ in range(3)]
    features, labels = torch.randn(7, 3, 5), torch.randint(0, 4, (7,))
    loss, correct = TrainHeads(heads)(torch.full((7, 3, 4), torch.nan), labels, 1, features)
    slow, total = 0.0, torch.zeros(7, 4)
    for expert, head in enumerate(heads):
        logits = features[:, expert] @ head.weight.T + head.bias
        total += logits
        for row, label in zip(logits.softmax(dim=1), labels, strict=True):
            slow -= row[label].log().item() / 7
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    assert correct == (total.argmax(dim=1) == labels).sum()


def test_tau_is_the_best_on_validation_images(run):
    """By putting each normalised head into the model and testing that."""
    model, _ = run.load_model()
    own = [head.weight.detach().clone() for head in model.heads]
    dataset = data_build.load_data(run.config)
    loader = data_build.eval_loader(run.config, dataset, dataset.val, Runtime())
    balanced = {}
    for number in range(21):
        for head, weight in zip(model.heads, own, strict=True):
            head.weight.data = weight / weight.norm(dim=1, keepdim=True) ** (number / 10)
            head.bias.data.zero_()
        balanced[number] = evaluate_outputs(collect_outputs(model, loader), dataset.class_counts, run.config).balanced
    change(run, method="tau")
    told = json.loads((run.folder / "classifier.json").read_text())
    assert list(told["balanced_val_accuracy"].values()) == pytest.approx(list(balanced.values()))
    best = max(balanced, key=lambda number: balanced[number])
    assert told["tau"] == best / 10
    assert len(set(balanced.values())) > 1
    for expert, weight in enumerate(own):
        expected = weight / weight.norm(dim=1, keepdim=True) ** told["tau"]
        torch.testing.assert_close(weights(run)[f"heads.{expert}.weight"], expected)


def test_a_given_tau_is_taken(run, trained):
    change(run, method="tau", tau=1.0)
    torch.testing.assert_close(weights(run)["heads.1.weight"].norm(dim=1), torch.ones(10))
    assert json.loads((run.folder / "classifier.json").read_text())["tau"] == 1.0


@pytest.mark.parametrize(
    ("distance", "kind"), [("cosine", "cosine"), ("centred cosine", "linear"), ("euclidean", "linear")]
)
def test_nearest_means_are_those_of_all_training_images(run, distance, kind):
    """Each expert answers with the class whose mean is nearest, of the training images as they are."""
    model, _ = run.load_model()
    dataset = data_build.load_data(run.config)
    with torch.no_grad():
        (train, labels), (test, _) = (
            (torch.cat([model(images).features for images, _ in loader.epoch(0)]), loader.labels(0))
            for loader in (
                data_build.eval_loader(run.config, dataset, part, Runtime()) for part in (dataset.train, dataset.test)
            )
        )
    expected = []
    for expert in (0, 1):
        near, far = train[:, expert].double(), test[:, expert].double()
        if distance == "centred cosine":
            near, far = near - near.mean(dim=0), far - near.mean(dim=0)
        if distance != "euclidean":
            near, far = F.normalize(near), F.normalize(far)
        means = torch.stack([near[labels == label].mean(dim=0) for label in range(10)])
        if distance != "euclidean":
            means = F.normalize(means)
        expected.append(torch.cdist(far, means).argmin(dim=1))
    change(run, method="nearest-mean", distance=distance)
    model, metadata = run.load_model()
    loader = data_build.eval_loader(run.config, dataset, dataset.test, Runtime())
    found = collect_outputs(model, loader).logits.argmax(dim=2)
    assert (found == torch.stack(expected, dim=1)).double().mean() > 0.998  # but for rounding
    assert metadata.architecture["head"] == kind


# ---- how a run comes by them ----


def test_they_are_always_made_from_the_experts_own(run):
    """Whatever the run has had meanwhile; with none it is as it was."""
    before, metadata = weights(run), load_metadata(run.model_path)
    change(run, method="tau", tau=0.7)
    direct = weights(run)
    for method in ("nearest-mean", "retrain"):
        change(run, method=method)
        assert (run.folder / "heads.safetensors").exists()
    change(run, method="tau")
    assert same(direct, weights(run))
    assert load_metadata(run.model_path).architecture == metadata.architecture
    change(run, method="none")
    assert same(before, weights(run))
    assert load_metadata(run.model_path) == metadata
    assert not any((run.folder / name).exists() for name in ("heads.safetensors", "classifier.json"))
    with pytest.raises(InputError, match="has the experts' own classifiers"):
        change(run, method="none")


@pytest.mark.parametrize("method", ["retrain", "tau"])
def test_all_stages_in_one_command_are_those_one_after_the_other(run, tmp_path, method):
    config = digits(classifier__method=method, router__train=True)
    both = longtail.train(config, tmp_path / "both")
    assert both.is_finished
    change(run, method=method)
    api.add_router(run, config=replace(run.config, router=config.router))
    assert same(weights(run), weights(both))
    assert load_metadata(run.model_path) == load_metadata(both.model_path)


def test_a_router_is_trained_anew(run):
    """It was trained on what the former classifiers said."""
    api.add_router(run)
    first = weights(run)
    change(run, method="tau", tau=1.5)
    second = weights(run)
    assert run.is_routed
    assert run.is_finished
    assert not torch.equal(first["router.output.0.weight"], second["router.output.0.weight"])
    api.add_router(run)
    assert same(second, weights(run))


@pytest.mark.parametrize("method", ["retrain", "scale"])
def test_a_stage_interrupted_in_the_middle_is_picked_up(tmp_path, monkeypatch, method):
    config = digits(classifier__method=method, training__checkpoint_every=0, training__epochs=2)
    whole = longtail.train(config, tmp_path / "whole")
    real = frozen.fit

    def stopped(*arguments, **options):
        for number, record in enumerate(real(*arguments, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield record

    run = Run(tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(frozen, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            longtail.train(config, run.folder)
    assert run.has_experts
    assert not run.has_classifier
    assert not run.is_finished
    steps = []
    monkeypatch.setattr(Experts, "train", None)
    forward = TrainHeads.forward
    monkeypatch.setattr(TrainHeads, "forward", lambda *a, **k: steps.append(a[3]) or forward(*a, **k))
    api.resume(run)
    assert 4 <= min(steps) <= max(steps) == 6  # and not those before
    assert run.is_finished
    assert same(weights(run), weights(whole))
    assert not run.checkpoint_path("classifier").exists()


def test_an_interrupted_command_leaves_the_run_as_it_was(run, monkeypatch):
    before, settings = weights(run), run.config

    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(frozen, "fit", stopped)
    with pytest.raises(KeyboardInterrupt):
        change(run, method="retrain")
    assert same(before, weights(run))
    assert Run(run.folder).config == settings


def test_what_cannot_be_is_refused(run, tmp_path):
    for method in ("scale", "tau"):
        with pytest.raises(InputError, match=rf"classifier\.method is '{method}'; .* where model\.head is 'cosine'"):
            load_recipe("digits-lt-ride", {"classifier.method": method})
    with pytest.raises(InputError, match="no validation images to choose tau on"):
        longtail.train(digits(classifier__method="tau", data__val_spare=0), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    blind = replace(run.config, data=replace(run.config.data, val_spare=0))
    with pytest.raises(InputError, match="no validation images to choose tau on"):
        api.retrain_classifier(run, config=replace(blind, classifier=replace(blind.classifier, method="tau")))
    change(run, method="nearest-mean")
    write_tensors(run.heads_path, {"0.weight": torch.zeros(2, 2)}, {"head": "linear"})
    with pytest.raises(InputError, match=r"heads\.safetensors: holds no classifiers of these experts"):
        change(run, method="retrain")
    run.heads_path.unlink()
    with pytest.raises(InputError, match=r"heads\.safetensors is not there: it held the experts' own"):
        change(run, method="retrain")
    for name, value in (("epochs", 0), ("views", 0), ("learning_rate", 0), ("tau", -1), ("cache_gib", -1)):
        with pytest.raises(InputError, match=rf"classifier\.{name} is"):
            load_recipe("digits-lt-ce", {f"classifier.{name}": value})


def test_model_files_of_earlier_versions_have_the_experts_own(tmp_path, monkeypatch):
    metadata = ModelMetadata(
        {"name": "resnet20", "num_classes": 2, "num_experts": 1}, ("a", "b"), (2, 1), 8, 8, (0.5,) * 3, (1.0,) * 3
    )
    monkeypatch.setattr(
        "longtail.runs.model_file.asdict", lambda c: {k: v for k, v in vars(c).items() if k != "classifier"}
    )
    save_model(tmp_path / "old.safetensors", create_model("resnet20", 2, 1), metadata)
    assert load_metadata(tmp_path / "old.safetensors").classifier == ""


def test_the_report_says_that_classifiers_were_replaced(run, monkeypatch):
    monkeypatch.undo()
    change(run, method="tau", tau=1)
    assert "its classifiers were then replaced (`classifier.method` tau)" in (run.folder / "report.md").read_text()


def test_cosine_heads_are_retrained_as_such(tmp_path):
    run = longtail.train(load_recipe("digits-lt-ride", {**SHORT, "classifier.method": "retrain"}), tmp_path / "run")
    model, metadata = run.load_model()
    assert metadata.architecture["head"] == "cosine"
    assert run.is_routed
    assert (metadata.classifier, model.heads[0].scale) == ("retrain", 30.0)
