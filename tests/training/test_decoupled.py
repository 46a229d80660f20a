"""Other classifiers for trained experts: how each method makes them, what stays, and how a run gets them."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers.loaders import CPU
from helpers.runs import are_equal, digits, train_without_reports, weights

import longtail
from longtail import api
from longtail.data.build import load_data
from longtail.data.loaders import Batch
from longtail.evaluation.outputs import collect_features, collect_outputs, evaluate_outputs
from longtail.models.decoupled_heads import tau_normalised
from longtail.models.multi_expert import ExpertOutput, create_model
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata, load_metadata, save_model
from longtail.runs.run import Run
from longtail.runtime.device import Runtime
from longtail.training import frozen_stage
from longtail.training.experts import ExpertStage
from longtail.training.tasks import TrainHeads
from longtail.utils.errors import InputError
from longtail.utils.files import write_tensors

pytestmark = pytest.mark.usefixtures("no_plots")

METHODS = ["retrain", "tau", *(pytest.param(name, marks=pytest.mark.slow) for name in ("scale", "nearest-mean"))]
TWO_EXPERTS = {
    "training.epochs": 6, "classifier.epochs": 4, "classifier.views": 2, "model.num_experts": 2, "model.head": "linear",
    "router.train": False, "router.max_accuracy_drop": None,
}  # fmt: skip


def two_experts(**changes):
    """Two experts with linear heads."""
    return digits(TWO_EXPERTS | {name.replace("__", "."): value for name, value in changes.items()}, "digits-lt-ce")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Run:
    """Do not change it."""
    return train_without_reports(two_experts(), tmp_path_factory.mktemp("runs") / "experts")


@pytest.fixture
def run(trained, tmp_path) -> Run:
    """A copy to change."""
    return Run(shutil.copytree(trained.folder, tmp_path / "copy"))


def retrain(run: Run, **settings) -> None:
    api.retrain_classifier(run, config=replace(run.config, classifier=replace(run.config.classifier, **settings)))


def made_by(run: Run) -> dict:
    return json.loads((run.folder / "classifier.json").read_text())


def context_of(run: Run) -> RunContext:
    return RunContext(run, run.config, load_data(run.config.data), Runtime(CPU))


# ---- the methods ----


@pytest.mark.parametrize("method", METHODS)
def test_only_the_heads_change(run, trained, method):
    """Weights and running statistics of trunk and branches stay bit for bit; the run is evaluated again."""
    before, results = weights(run), run.results()
    retrain(run, method=method)
    after = weights(run)
    bodies = [{n: v for n, v in tensors.items() if not n.startswith("heads.")} for tensors in (before, after)]
    assert are_equal(*bodies)
    assert not torch.equal(after["heads.0.weight"], before["heads.0.weight"])
    assert run.load_model()[1].classifier == run.config.classifier.method == made_by(run)["method"] == method
    assert run.progress().has_classifier
    assert replace(run.config, classifier=trained.config.classifier) == trained.config
    again = longtail.evaluate(run)
    assert again.accuracy == run.results()["test"]["accuracy"]
    assert again.as_dict() != results["test"]


def test_retrained_heads_start_from_new_weights_and_learn(run):
    before = weights(run)
    retrain(run, method="retrain", learning_rate=0.02)
    first, epochs = weights(run), made_by(run)["epochs"]
    assert len(epochs) == 4
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    for expert in (0, 1):
        cosines = F.cosine_similarity(first[f"heads.{expert}.weight"], before[f"heads.{expert}.weight"])
        assert cosines.mean() < 0.9
    assert not torch.equal(first["heads.0.weight"], first["heads.1.weight"])
    retrain(run, method="retrain", learning_rate=0.02)
    assert are_equal(first, weights(run))


def test_scaled_heads_keep_their_directions(run):
    before = weights(run)
    retrain(run, method="scale")
    after = weights(run)
    for expert in (0, 1):
        old, new = (tensors[f"heads.{expert}.weight"] for tensors in (before, after))
        scales = (old * new).sum(dim=1) / old.square().sum(dim=1)
        assert scales.std() > 1e-3
        torch.testing.assert_close(new, scales[:, None] * old)
        torch.testing.assert_close(after[f"heads.{expert}.bias"], scales * before[f"heads.{expert}.bias"])


def test_each_head_has_its_own_cross_entropy():
    """Computed by hand; the logits of the frozen experts are not used."""
    torch.manual_seed(0)
    heads = [torch.nn.Linear(5, 4) for _ in range(3)]
    features, labels = torch.randn(7, 3, 5), torch.randint(0, 4, (7,))
    batch = Batch(ExpertOutput(torch.full((7, 3, 4), torch.nan), features), labels)
    loss, correct = TrainHeads(heads)(batch, 1)
    slow, total = 0.0, torch.zeros(7, 4)
    for expert, head in enumerate(heads):
        logits = features[:, expert] @ head.weight.T + head.bias
        total += logits
        for row, label in zip(logits.softmax(dim=1), labels, strict=True):
            slow -= row[label].log().item() / 7
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    assert correct == (total.argmax(dim=1) == labels).sum()


def test_tau_is_the_best_on_validation_images(run):
    """Compared with the evaluation of a model for each tau."""
    model, _ = run.load_model()
    heads, context = list(model.heads), context_of(run)
    loader, counts = context.eval_loader(context.dataset.val), context.dataset.class_counts
    balanced = []
    for number in range(21):
        model.heads = torch.nn.ModuleList(tau_normalised(head, number / 10) for head in heads)
        outputs = collect_outputs(model, loader)
        balanced.append(evaluate_outputs(outputs, counts, run.config.evaluation).balanced)
    retrain(run, method="tau")
    info = made_by(run)
    assert list(info["balanced_val_accuracy"].values()) == pytest.approx(balanced)
    assert info["tau"] == balanced.index(max(balanced)) / 10
    assert len(set(balanced)) > 1
    for expert, head in enumerate(heads):
        expected = head.weight / head.weight.norm(dim=1, keepdim=True) ** info["tau"]
        torch.testing.assert_close(weights(run)[f"heads.{expert}.weight"], expected.detach())
        assert not weights(run)[f"heads.{expert}.bias"].any()


def test_tau_can_be_set(run):
    retrain(run, method="tau", tau=1.0)
    torch.testing.assert_close(weights(run)["heads.1.weight"].norm(dim=1), torch.ones(10))
    assert made_by(run)["tau"] == 1.0


@pytest.mark.parametrize(
    ("distance", "head"),
    [
        ("cosine", "cosine"),
        pytest.param("centred cosine", "linear", marks=pytest.mark.slow),
        pytest.param("euclidean", "linear", marks=pytest.mark.slow),
    ],
)
def test_nearest_means_are_those_of_all_training_images(run, distance, head):
    """Each expert predicts the class with the nearest mean of the training images without augmentation."""
    model, _ = run.load_model()
    context = context_of(run)
    train, test = (
        collect_features(model, context.eval_loader(s)) for s in (context.dataset.train, context.dataset.test)
    )
    expected = []
    for expert in (0, 1):
        references, queries = train.features[:, expert].double(), test.features[:, expert].double()
        if distance == "centred cosine":
            references, queries = references - references.mean(dim=0), queries - references.mean(dim=0)
        if distance != "euclidean":
            references, queries = F.normalize(references), F.normalize(queries)
        means = torch.stack([references[train.labels == label].mean(dim=0) for label in range(10)])
        if distance != "euclidean":
            means = F.normalize(means)
        expected.append(torch.cdist(queries, means).argmin(dim=1))
    retrain(run, method="nearest-mean", distance=distance)
    model, metadata = run.load_model()
    predictions = collect_outputs(model, context.eval_loader(context.dataset.test)).logits.argmax(dim=2)
    assert (predictions == torch.stack(expected, dim=1)).double().mean() > 0.998  # all but for rounding
    assert metadata.architecture["head"] == head


# ---- the stage of a run ----


@pytest.mark.slow
def test_new_heads_are_always_made_from_the_own_heads_of_the_experts(run):
    """Whatever heads the run has had meanwhile; method none restores the experts' own heads."""
    before, metadata = weights(run), load_metadata(run.model_path)
    retrain(run, method="tau", tau=0.7)
    direct = weights(run)
    for method in ("nearest-mean", "retrain"):
        retrain(run, method=method)
        assert run.heads_path.exists()
    retrain(run, method="tau")
    assert are_equal(direct, weights(run))
    kept = [
        {name: value for name, value in part.architecture.items() if name != "temperature"}  # of the heads
        for part in (metadata, load_metadata(run.model_path))
    ]
    assert kept[0] == kept[1]
    retrain(run, method="none")
    assert are_equal(before, weights(run))
    assert load_metadata(run.model_path) == metadata
    assert not any((run.folder / name).exists() for name in ("heads.safetensors", "classifier.json"))
    with pytest.raises(InputError, match="experts' own classifiers"):
        retrain(run, method="none")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["retrain", "tau"])
def test_stages_one_by_one_equal_all_stages_at_once(run, tmp_path, method):
    config = two_experts(classifier__method=method, router__train=True)
    at_once = longtail.train(config, tmp_path / "at once")
    assert at_once.is_finished
    retrain(run, method=method)
    api.add_router(run, config=replace(run.config, router=config.router))
    assert are_equal(weights(run), weights(at_once))
    assert load_metadata(run.model_path) == load_metadata(at_once.model_path)


@pytest.mark.slow
def test_new_classifiers_get_a_new_router(run):
    """The earlier router was trained on the outputs of the earlier classifiers."""
    api.add_router(run)
    first = weights(run)
    retrain(run, method="tau", tau=1.5)
    second = weights(run)
    assert run.progress() == (6, True, True, True, True)
    assert not torch.equal(first["router.output.0.weight"], second["router.output.0.weight"])
    api.add_router(run)
    assert are_equal(second, weights(run))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["retrain", "scale"])
def test_an_interrupted_stage_is_resumed(tmp_path, monkeypatch, method):
    config = two_experts(classifier__method=method, training__checkpoint_every=0, training__epochs=2)
    expected = longtail.train(config, tmp_path / "expected")
    fit = frozen_stage.fit

    def interrupted_fit(*arguments):
        for number, record in enumerate(fit(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield record

    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(frozen_stage, "fit", interrupted_fit)
        with pytest.raises(KeyboardInterrupt):
            longtail.train(config, run.folder)
    assert run.progress() == (2, True, False, False, False)
    epochs = []
    monkeypatch.setattr(ExpertStage, "train", None)
    forward = TrainHeads.forward
    monkeypatch.setattr(TrainHeads, "forward", lambda *a: epochs.append(a[2]) or forward(*a))
    longtail.resume(run)
    assert 3 <= min(epochs) <= max(epochs) == 4
    assert run.is_finished
    assert are_equal(weights(run), weights(expected))
    assert not run.checkpoint_path("classifier").exists()


def test_an_interrupted_command_leaves_the_run_as_it_was(run, monkeypatch):
    before, settings = weights(run), run.config

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(frozen_stage, "fit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        retrain(run, method="retrain")
    assert are_equal(before, weights(run))
    assert Run(run.folder).config == settings


def test_tau_is_not_chosen_without_validation_images(run, tmp_path):
    with pytest.raises(InputError, match=r"tau .*validation images"):
        longtail.train(two_experts(classifier__method="tau", data__val_spare=0), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    without_val = replace(run.config, data=replace(run.config.data, val_spare=0))
    config = replace(without_val, classifier=replace(without_val.classifier, method="tau"))
    with pytest.raises(InputError, match=r"tau .*validation images"):
        api.retrain_classifier(run, config=config)


def test_damaged_or_missing_heads_of_the_experts(run):
    retrain(run, method="nearest-mean")
    write_tensors(run.heads_path, {"0.weight": torch.zeros(2, 2)}, {"head": "linear"})
    with pytest.raises(InputError, match=rf"{run.heads_path.name}: not the classifiers"):
        retrain(run, method="retrain")
    run.heads_path.unlink()
    with pytest.raises(InputError, match=rf"{run.heads_path.name} is missing"):
        retrain(run, method="retrain")


def test_settings_of_the_classifier_are_checked():
    for method in ("scale", "tau"):
        with pytest.raises(InputError, match=rf"classifier\.method is '{method}'.* model\.head"):
            digits({"classifier.method": method})
    for name, value in (("epochs", 0), ("views", 0), ("learning_rate", 0), ("tau", -1), ("cache_gib", -1)):
        with pytest.raises(InputError, match=rf"classifier\.{name}"):
            digits({f"classifier.{name}": value}, "digits-lt-ce")


def test_model_files_of_earlier_versions_have_the_own_heads_of_the_experts(tmp_path, monkeypatch):
    metadata = ModelMetadata(
        {"name": "resnet20", "num_classes": 2, "num_experts": 1}, ("a", "b"), (2, 1), 8, 8, (0.5,) * 3, (1.0,) * 3
    )
    monkeypatch.setattr(
        "longtail.runs.model_file.asdict", lambda m: {k: v for k, v in vars(m).items() if k != "classifier"}
    )
    save_model(tmp_path / "old.safetensors", create_model("resnet20", 2, 1), metadata)
    assert load_metadata(tmp_path / "old.safetensors").classifier == ""


@pytest.mark.slow
def test_the_report_names_the_method(run, monkeypatch):
    monkeypatch.undo()  # with report
    retrain(run, method="tau", tau=1)
    assert "`classifier.method` tau" in (run.folder / "report.md").read_text()


@pytest.mark.slow
def test_cosine_heads_are_retrained_as_cosine_heads(tmp_path):
    run = longtail.train(digits({"classifier.epochs": 4, "classifier.method": "retrain"}), tmp_path / "run")
    model, metadata = run.load_model()
    assert metadata.architecture["head"] == "cosine"
    assert run.progress().is_routed
    assert (metadata.classifier, model.heads[0].scale) == ("retrain", 30.0)
