"""Every recipe trains and evaluates on tiny data in the layout that it expects. One of them does so by default."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
from helpers import cifar_files, golden, layouts
from safetensors.torch import save_file
from torch.optim.optimizer import register_optimizer_step_post_hook

import longtail
from longtail.config.recipes import list_recipes, load_recipe
from longtail.data import build as data_build
from longtail.training import optim
from longtail.training.teacher import find_teacher

BY_DEFAULT = "cifar100-lt-crt"

# At full size, the networks take minutes on a CPU. Images are smaller, and some networks too.
SMALLER = {
    "imagenet-lt-resnet": {"data.image_size": 64, "data.resize": 72},
    "imagenet-lt-resnext": {"data.image_size": 64, "data.resize": 72},
    "imagenet-lt-resnext50-ride-": {"model.backbone": "resnet10", "model.num_experts": 2},
    "imagenet-lt-resnet50-ride-": {"model.backbone": "resnet10", "model.num_experts": 2},
    "imagenet-lt-resnet10-ride-": {"model.num_experts": 2},
    "inaturalist2018-resnet50-ride-": {"model.num_experts": 2},
    "inaturalist2018": {"data.image_size": 64, "data.resize": 72, "model.backbone": "resnet10"},
    "places-lt": {"data.image_size": 64, "data.resize": 72, "model.backbone": "resnet18"},
    "folder-pretrained": {"data.image_size": 64, "data.resize": 72, "model.backbone": "resnet18"},
    "imagenet-lt-swin": {"data.image_size": 112},
    "cifar": {"model.backbone": "resnet20"},
}
SMALL_SWIN = {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """All data sets, each in a folder of its name, and pretrained weights."""
    root = tmp_path_factory.mktemp("data")
    for name in layouts.PUBLISHED:
        layouts.write_published(root / name, name)
    layouts.write_folder(root / "folder")
    for name, layout in cifar_files.LAYOUTS.items():
        per_file = 300 // len(layout.train)
        files = cifar_files.contents(name, per_file)
        for file in (*layout.train, *layout.test):
            files[file][layout.labels] = [number % layout.num_classes for number in range(per_file)]
        cifar_files.write(root / name, name, files)
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), root / "resnet18.safetensors")
    return root


@pytest.fixture
def small_swin(monkeypatch):
    def create(name, **options):
        return original(name, **(options | SMALL_SWIN if name.startswith("swin") else options))

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)


def overrides(name: str, data: Path) -> dict[str, Any]:
    config = load_recipe(name)
    changes: dict[str, Any] = {"device": "cpu", "training.epochs": 1, "data.workers": 0, "router.epochs": 2}
    changes |= {"classifier.epochs": 2, "classifier.views": 1}
    if config.data.name != "digits":  # which are built in
        changes["data.root"] = str(data / config.data.name)
    for prefix, smaller in SMALLER.items():
        if name.startswith(prefix):
            changes |= smaller
    if config.model.pretrained and name != "folder":  # whose weights are installed
        changes["model.pretrained"] = str(data / "resnet18.safetensors")
    if config.data.name.startswith("cifar"):
        changes["data.imbalance_factor"] = 0.5
    return changes


@pytest.fixture
def steps():
    """The class of the optimiser of each step."""
    taken: list[str] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: taken.append(type(optimizer).__name__))
    yield taken
    hook.remove()


@pytest.mark.usefixtures("small_swin")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == BY_DEFAULT else pytest.mark.slow) for name in list_recipes()]
)
def test_a_recipe_trains_and_evaluates(name, data, tmp_path, steps, request):
    report = {"plots", "report.md", "report.html"}
    if name != BY_DEFAULT:
        request.getfixturevalue("no_plots")
        report = set()
    changes = overrides(name, data)
    dataset = data_build.load_data(load_recipe(name, changes).data)
    config = load_recipe(name, changes | {"training.batch_size": -(-len(dataset.train) // 2)})  # two steps
    if config.teacher:
        teacher = longtail.train(load_recipe(config.teacher, overrides(name, data)), output=tmp_path / "teacher")
        how = replace(config.distillation, teacher_settings=[])
        config = replace(config, teacher=str(teacher.folder), distillation=how)
        steps.clear()
    run = longtail.train(config, output=tmp_path / "run")
    stages = (config.classifier.method in ("retrain", "scale")) + config.router.train
    assert steps == [{"sgd": "SGD", "adamw": "AdamW"}[config.training.optimizer]] * 2 + ["SGD"] * 2 * stages
    assert {file.name for file in run.folder.iterdir()} == {
        *("config.yaml", "environment.json", "metrics.jsonl", "model.safetensors", "outputs.safetensors", *report),
        *("results.json", ".lock", *["router.json"] * config.router.train),
        *["predictions.csv"] * (dataset.test.paths is not None),
        *["classifier.json", "heads.safetensors"] * (config.classifier.method != "none"),
    }
    assert np.isfinite(run.history()[0]["loss"])
    results = json.loads((run.folder / "results.json").read_text())
    evaluation = longtail.evaluate(run)
    assert evaluation.accuracy == results["test"]["accuracy"]
    assert ("val" in results) == (dataset.val is not None)
    assert len(evaluation.experts) == config.model.num_experts


@pytest.mark.slow
def test_teachers_are_trained_as_their_students():
    """With the same schedule, data and network, and 6 experts."""
    distilled = [name for name in list_recipes() if load_recipe(name).teacher]
    assert len(distilled) == 6
    for name in distilled:
        student = load_recipe(name)
        teacher = find_teacher(student)
        assert (teacher.model.num_experts, teacher.router.train) == (6, False)
        assert teacher.training.epochs == student.training.epochs
        assert teacher.model.backbone == student.model.backbone
        assert teacher.loss == student.loss
        assert teacher.augmentation == student.augmentation


def test_published_settings_of_the_large_recipes():
    """The settings in the paper of RIDE, and in the repositories of RIDE and RIDE-Swin."""
    for name, (batch, rate, spread) in {
        "imagenet-lt-resnet10-ride": (256, 0.1, 0.02),
        "imagenet-lt-resnet50-ride": (256, 0.1, 0.02),
        "imagenet-lt-resnext50-ride": (256, 0.1, 0.02),
        "inaturalist2018-resnet50-ride": (512, 0.2, 0.015),
    }.items():
        config = load_recipe(name)
        training, loss, augmentation = config.training, config.loss, config.augmentation
        assert (training.epochs, training.batch_size, training.learning_rate) == (100, batch, rate)
        assert [round(m * 100) for m in training.milestones] == [60, 80]
        assert (training.decay, round(training.warmup * 100), training.weight_decay) == (0.1, 5, 2e-4)
        assert (loss.diversity_factor, loss.temperature_spread, loss.reweight_after) == (-0.2, spread, 0.8)
        assert (training.optimizer, training.momentum, training.nesterov) == ("sgd", 0.9, True)
        jitter = (0.0,) * 4 if name.startswith("inat") else (0.4, 0.4, 0.4, 0.0)
        assert (augmentation.crop, augmentation.flip, augmentation.rotation) == ("resized", True, 0)
        assert augmentation.color_jitter == jitter
        assert (config.data.image_size, config.data.resize, config.model.num_experts) == (224, 256, 3)
        assert config.router.top_choices == (30 if "resnet10-" in name else 50)
    for name, (experts, decay, drop_path, after, head) in {
        "imagenet-lt-swin-tiny-ride": (3, 0.2, 0.2, 241, "cosine"),
        "imagenet-lt-swin-tiny-ride-2": (2, 0.2, 0.2, 241, "cosine"),
        "imagenet-lt-swin-tiny-ldam-drw": (1, 0.05, 0.2, 240, "cosine"),
        "imagenet-lt-swin-tiny-ce": (1, 0.05, 0.2, None, "linear"),
        "imagenet-lt-swin-small-ride": (3, 0.3, 0.3, 241, "cosine"),
        "imagenet-lt-swin-small-ride-2": (2, 0.2, 0.3, 241, "cosine"),
        "imagenet-lt-swin-small-ldam-drw": (1, 0.05, 0.3, 240, "cosine"),
        "imagenet-lt-swin-small-ce": (1, 0.05, 0.3, None, "linear"),
    }.items():
        config = load_recipe(name)
        training, model, augmentation = config.training, config.model, config.augmentation
        assert (model.num_experts, model.drop_path_rate, model.head) == (experts, drop_path, head)
        assert model.width == ("full" if experts == 1 else "narrow")
        assert ("tiny" in name) == ("tiny" in model.backbone)
        assert (training.optimizer, training.weight_decay, training.decay_vectors) == ("adamw", decay, False)
        assert (training.epochs, training.batch_size, round(training.warmup * 300)) == (300, 1024, 20)
        assert (training.clip_gradient, training.learning_rate_batch, training.learning_rate) == (5.0, 512, 5e-4)
        assert (augmentation.mixup, augmentation.cutmix, augmentation.random_erasing) == (0.8, 1.0, 0.25)
        # Images of a GPU in one accumulated part, with the commands of the original for 8 GPUs.
        parts = {
            "imagenet-lt-swin-tiny-ride": 32,
            "imagenet-lt-swin-tiny-ride-2": 64,
            "imagenet-lt-swin-small-ride-2": 32,
        }
        assert augmentation.mix_images == parts.get(name, 128)
        assert (augmentation.rand_augment, config.loss.label_smoothing) == ("rand-m9-mstd0.5-inc1", 0.1)
        assert (config.loss.diversity_mean, config.loss.diversity_factor) == (True, -0.2)
        if after is None:
            assert config.loss.reweight_after is None
        else:
            assert round(config.loss.reweight_after * 300) == after
        assert (config.evaluation.many_above, config.evaluation.few_below) == (99, 21)


def test_learning_rates_of_the_swin_recipes_are_the_original_ones():
    """The original sets each rate after the step, so its optimiser uses it one step later."""
    values = golden.arrays("schedules/swin_lr.npz")["batch512_7steps/lr_after_update"]
    config = load_recipe("imagenet-lt-swin-tiny-ride", {"training.batch_size": 512})
    rate = optim.learning_rate(config.training)
    np.testing.assert_allclose([rate(step / 7) for step in range(len(values))], values, rtol=1e-12)
    doubled = optim.learning_rate(load_recipe("imagenet-lt-swin-tiny-ride").training)
    assert doubled(100.5) == pytest.approx(2 * rate(100.5))
