"""Every recipe trains, tests and leaves a whole run folder, on miniature data in the layout it expects."""

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

# Whole networks at their own size take minutes on a CPU: images are smaller, and where that is not enough, networks.
SMALLER = {
    "imagenet-lt-resnet": {"data.image_size": 64, "data.resize": 72},
    "imagenet-lt-resnext": {"data.image_size": 64, "data.resize": 72},
    "imagenet-lt-resnext50-ride-": {"model.backbone": "resnet10", "model.num_experts": 2},
    "inaturalist2018": {"data.image_size": 64, "data.resize": 72, "model.backbone": "resnet10"},
    "places-lt": {"data.image_size": 64, "data.resize": 72, "model.backbone": "resnet18"},
    "folder-pretrained": {"data.image_size": 64, "data.resize": 72, "model.backbone": "resnet18"},
    "imagenet-lt-swin": {"data.image_size": 112},
}
CLASSIFIERS = ("retrain", "scale", "tau", "nearest-mean")
SMALL_SWIN = {"embed_dim": 32, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """All of the data sets, each in a folder of its name; and weights to start from."""
    root = tmp_path_factory.mktemp("data")
    for name in layouts.PUBLISHED:
        layouts.write_published(root / name, name)
    layouts.write_folder(root / "folder")
    for name in ("cifar10", "cifar100"):
        cifar_files.write(root / name, name, balanced(name, 300 // len(cifar_files.LAYOUTS[name].train)))
    save_file(timm.create_model("resnet18", num_classes=0).state_dict(), root / "resnet18.safetensors")
    return root


def balanced(name: str, per_file: int) -> dict[str, dict]:
    """CIFAR files with as many images of each class."""
    files = cifar_files.contents(name, per_file)
    layout = cifar_files.LAYOUTS[name]
    for file in (*layout.train, *layout.test):
        files[file][layout.labels] = [number % layout.num_classes for number in range(per_file)]
    return files


@pytest.fixture(autouse=True)
def small_swin(monkeypatch):
    def create(name, **options):
        return original(name, **(options | SMALL_SWIN if name.startswith("swin") else options))

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", create)


def overrides(name: str, data: Path) -> dict[str, Any]:
    config = load_recipe(name)
    changes: dict[str, Any] = {"device": "cpu", "training.epochs": 1, "data.workers": 0, "data.root": str(data)}
    changes |= {"router.epochs": 2, "classifier.epochs": 2, "classifier.views": 1}
    if config.data.name != "digits":
        changes["data.root"] = str(data / config.data.name)
    for beginning, smaller in SMALLER.items():
        if name.startswith(beginning):
            changes |= smaller
    if config.model.pretrained:
        changes["model.pretrained"] = str(data / "resnet18.safetensors")
    if config.data.name.startswith("cifar"):
        changes["data.imbalance_factor"] = 0.5
    return changes


@pytest.fixture
def steps():
    """A name for every step that any optimiser takes."""
    taken: list[str] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: taken.append(type(optimizer).__name__))
    yield taken
    hook.remove()


@pytest.mark.parametrize("name", list_recipes())
def test_two_steps_and_a_whole_run(name, data, tmp_path, steps):
    config = load_recipe(name, overrides(name, data))
    images = len(data_build.load_data(config).train)
    config = load_recipe(name, overrides(name, data) | {"training.batch_size": -(-images // 2)})
    if config.teacher:  # a recipe
        teacher = longtail.train(load_recipe(config.teacher, overrides(name, data)), output=tmp_path / "teacher")
        config = replace(config, teacher=str(teacher.folder))
        steps.clear()
    run = longtail.train(config, output=tmp_path / "run")
    trains_heads, has_heads = (config.classifier.method in kinds for kinds in (("retrain", "scale"), CLASSIFIERS))
    assert steps == [
        *[{"sgd": "SGD", "adamw": "AdamW"}[config.training.optimizer]] * 2,
        *["SGD"] * 2 * (trains_heads + config.router.train),
    ]
    assert {file.name for file in run.folder.iterdir()} == {
        *("config.yaml", "environment.json", "metrics.jsonl", "model.safetensors", "plots", "report.md"),
        *("results.json", ".lock", *["router.json"] * config.router.train),
        *["predictions.csv"] * (data_build.load_data(config).test.paths is not None),
        *["classifier.json", "heads.safetensors"] * has_heads,
    }
    assert np.isfinite(run.history()[0]["loss"])
    results = json.loads((run.folder / "results.json").read_text())
    again = longtail.evaluate(run)
    assert again.accuracy == results["test"]["accuracy"]
    has_part = config.data.name in ("imagenet-lt", "places-lt")
    assert ("val" in results) == (has_part or config.data.val_spare > 0)
    assert len(again.experts) == config.model.num_experts


def test_published_settings_of_the_large_recipes():
    """The table of the paper's and the repositories' settings."""
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
        assert (augmentation.rand_augment, config.loss.label_smoothing) == ("rand-m9-mstd0.5-inc1", 0.1)
        assert (config.loss.diversity_mean, config.loss.diversity_factor) == (True, -0.2)
        if after is None:
            assert config.loss.reweight_after is None
        else:
            assert round(config.loss.reweight_after * 300) == after
        assert (config.evaluation.many_above, config.evaluation.few_below) == (99, 21)


def test_learning_rate_of_the_swin_recipes():
    """That of the original, whose optimiser uses each value one step later."""
    settings = golden.table("schedules/swin_lr.json")
    values = golden.arrays("schedules/swin_lr.npz")["batch512_7steps/lr_after_update"]
    assert settings is not None
    config = load_recipe("imagenet-lt-swin-tiny-ride", {"training.batch_size": 512})
    rate = optim.learning_rate(config)
    np.testing.assert_allclose([rate(step / 7) for step in range(len(values))], values, rtol=1e-12)
    doubled = optim.learning_rate(load_recipe("imagenet-lt-swin-tiny-ride"))
    assert doubled(100.5) == pytest.approx(2 * rate(100.5))
