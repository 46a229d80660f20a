"""A training that is stopped anywhere and resumed equals an uninterrupted one, bit for bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import layouts
from helpers.loaders import CPU, NORMALISE, loader, small_split
from helpers.runs import are_equal, assert_same_runs, digits, untimed

import longtail
from longtail.config.recipes import load_recipe
from longtail.data.batch_augment import BatchAugmentation
from longtail.data.image_loader import ImageLoader
from longtail.data.loaders import EpochOrder
from longtail.data.mixup import MixedLoader, MixSettings
from longtail.data.splits import ImageSplit
from longtail.data.transforms import ImageAugmentation, train_transform
from longtail.losses import RIDELoss, SelfDistilledLoss
from longtail.models.multi_expert import create_model, create_router
from longtail.runtime.device import Runtime
from longtail.runtime.process import Signals, Stopped
from longtail.training import optim
from longtail.training.cached_outputs import CachedOutputs
from longtail.training.checkpoint import Checkpoint
from longtail.training.ema import WeightAverage
from longtail.training.loop import LoopOptions, fit
from longtail.training.progress import TrainingProgress
from longtail.training.tasks import TrainExperts, TrainRouter
from longtail.utils.errors import InputError
from longtail.utils.files import read_tensors, write_tensors

EPOCHS = 3
CHECKPOINT, PREVIOUS = "checkpoint.safetensors", "checkpoint.before.safetensors"


def memory_loader(folder):
    return loader(small_split(num=20), 8, shuffle=True, padding=1, flip=True, rotation=9.0)


def strong_views_loader(folder):
    strong = BatchAugmentation(1, True, 0.0, "cifar10", 4)
    return loader(small_split(num=20), 8, shuffle=True, padding=1, flip=True, rotation=9.0, other_views=[strong])


def mixed_loader(folder):
    return MixedLoader(memory_loader(folder), 4, MixSettings(0.8, 1.0, 0.1, 0.5), seed=3, device=CPU)


def image_loader(folder, workers=0):
    root = folder / "photos"
    if not root.exists():
        layouts.write_folder(root)
    augmentation = ImageAugmentation("resized", 0, (0.2, 1.0), True, 10.0, (0.3, 0.3, 0.3, 0.1), "rand-m9-mstd0.5-inc1")
    transform = train_transform(16, augmentation, None, "bicubic")
    paths = sorted(root.rglob("*.jpg"))
    split = ImageSplit(np.array([int(path.parent.name[-1]) for path in paths]), paths=np.array(paths, dtype=object))
    order = EpochOrder(len(split), 8, seed=2, shuffle=True)
    return ImageLoader(split, transform, order, device=CPU, normalise=NORMALISE, workers=workers)


def experts(name="resnet20", **options):
    torch.manual_seed(0)
    return TrainExperts(create_model(name, 4, 2, **options), RIDELoss([9, 5, 3, 1], reweight_after=1))


def router(folder):
    model = experts().model.eval()
    outputs = CachedOutputs(model, memory_loader(folder), batch_size=6, seed=5)
    torch.manual_seed(1)
    return TrainRouter(create_router(model, top_choices=3), 2.0), outputs


def sgd(task):
    return optim.optimizer(load_recipe("cifar100-lt-ride").training, task)


def adamw(task):
    return optim.optimizer(load_recipe("cifar100-lt-ride", {"training.optimizer": "adamw"}).training, task)


CASES = {
    "sgd": lambda folder: (experts(), memory_loader(folder), sgd, {}),
    "adamw, mixed, stochastic depth": lambda folder: (
        experts("resnet10", drop_path_rate=0.5, drop_rate=0.2), mixed_loader(folder), adamw, {"clip_gradient": 1.0}
    ),
    "accumulated, fp16": lambda folder: (
        experts(), memory_loader(folder), sgd, {"accumulation": 2, "runtime": Runtime(CPU, "fp16")}
    ),
    "two views, accumulated": lambda folder: (
        TrainExperts(experts().model, SelfDistilledLoss(RIDELoss([9, 5, 3, 1], reweight_after=1), rampup=2)),
        strong_views_loader(folder), sgd, {"accumulation": 2}
    ),
    "files": lambda folder: (experts(), image_loader(folder), sgd, {}),
    "files and workers": lambda folder: (
        experts(), image_loader(folder, workers=2), adamw, {"runtime": Runtime(CPU, "bf16")}
    ),
    "router": lambda folder: (*router(folder), sgd, {}),
    "ema": lambda folder: (
        (task := experts()), memory_loader(folder), sgd, {"average": WeightAverage(task.model, 0.6), "accumulation": 2}
    ),
}  # fmt: skip


def attempt(case, folder, stop_after=None):
    """Trains from the checkpoint, if any, to the end or for some steps; returns weights and metrics, or None."""
    task, source, make_optimizer, options = CASES[case](folder)
    signals = Signals()
    checkpoint = Checkpoint(folder / CHECKPOINT, "settings", every=1e9, signals=signals)
    records, done = checkpoint.records, 0

    def on_step(*progress):
        nonlocal done
        done += 1
        signals.asked_to_stop = done == stop_after

    options = LoopOptions(seed=7, checkpoint=checkpoint, on_step=on_step, **options)
    try:
        for record in fit(task, source, make_optimizer(task), lambda epoch: 0.02 * (1 + epoch), EPOCHS, options):
            record["validated"] = record["epoch"] / 10  # callers add metrics to a record
            records.append(record)
    except Stopped:
        return None
    weights = {name: value.clone() for name, value in task.state_dict().items()}
    if options.average is not None:
        weights |= {f"average.{name}": value for name, value in options.average.model.state_dict().items()}
    return weights, untimed(records)


def train(case, folder, stops=()):
    """Trains with a new process's state after each stop; ``stops`` are the steps from one stop to the next."""
    for name in (CHECKPOINT, PREVIOUS):
        (folder / name).unlink(missing_ok=True)
    for number in stops:
        assert attempt(case, folder, number) is None
    return attempt(case, folder)


def check(case, folder, stops_of_steps):
    weights, records = train(case, folder)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    steps = len(CASES[case](folder)[1])
    for stops in stops_of_steps(steps):
        resumed_weights, resumed_records = train(case, folder, stops)
        assert resumed_records == records, stops
        assert are_equal(resumed_weights, weights), stops


@pytest.mark.parametrize("case", ["sgd", "router", "ema"])
def test_a_stopped_training_resumes_exactly(case, tmp_path):
    check(case, tmp_path, lambda steps: [[2, steps, 1]])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_training_may_stop_after_any_step(case, tmp_path):
    check(case, tmp_path, lambda steps: [[1], [steps], [steps + 1, steps], [2, 3, 1, 1], [1] * (EPOCHS * steps)])


# ---- checkpoints ----


def truncate(content: bytes) -> bytes:
    return content[:-9]


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize("damage", [flip_bit, pytest.param(truncate, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_replaced_by_the_one_before(tmp_path, caplog, damage):
    weights, records = train("sgd", tmp_path)
    for _ in range(2):
        assert attempt("sgd", tmp_path, 2) is None
    path = tmp_path / CHECKPOINT
    path.write_bytes(damage(path.read_bytes()))
    resumed_weights, resumed_records = attempt("sgd", tmp_path)
    assert f"{path}: " in caplog.text
    assert resumed_records == records
    assert are_equal(resumed_weights, weights)


@pytest.mark.parametrize("content", [b"", b"abc", b"no checkpoint"])
def test_without_a_readable_checkpoint_training_starts_again(tmp_path, caplog, content):
    for name in (CHECKPOINT, PREVIOUS):
        (tmp_path / name).write_bytes(content)
    checkpoint = Checkpoint(tmp_path / CHECKPOINT, "settings")
    assert not checkpoint.exists
    assert checkpoint.records == []
    assert checkpoint.previous == tmp_path / PREVIOUS
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [str(tmp_path / name) in line for name, line in zip((CHECKPOINT, PREVIOUS), warnings, strict=True)]


def test_a_checkpoint_of_another_training(tmp_path):
    signals = Signals()
    signals.asked_to_stop = True
    path = tmp_path / CHECKPOINT

    def fit_once(task, checkpoint):
        return list(fit(task, memory_loader(tmp_path), sgd(task), lambda e: 0.1, 1, LoopOptions(checkpoint=checkpoint)))

    with pytest.raises(Stopped):
        fit_once(experts(), Checkpoint(path, "a", signals=signals))
    assert Checkpoint(path, "a").exists
    assert Checkpoint(path, "A", matches=lambda saved, current: saved == current.lower()).exists
    with pytest.raises(InputError, match=CHECKPOINT):
        Checkpoint(path, "b")
    assert not Checkpoint(path, "b", strict=False).exists
    other_network = TrainExperts(create_model("resnet32", 4, 2), RIDELoss([9, 5, 3, 1]))
    with pytest.raises(InputError, match=rf"{CHECKPOINT}: .*another training"):
        fit_once(other_network, Checkpoint(path, "a"))


def rename(tensors, values, old, new):
    tensors[new] = tensors.pop(old)


BUFFER = "optimizer.0.momentum_buffer"
WRONG_CONTENTS = {
    "later format": (lambda tensors, values: values.update(format=3), "another version"),
    "renamed field": (
        lambda tensors, values: values["position"].update(steps=values["position"].pop("step")), "position"
    ),
    "absent field": (lambda tensors, values: values["position"].pop("seconds"), "position"),
    "no position": (lambda tensors, values: values.update(position=[1]), "position"),
    "step 999": (lambda tensors, values: values["position"].update(step=999), "step 999 of .* 3 steps"),
    "step -1": (lambda tensors, values: values["position"].update(step=-1), "step -1"),
    "epoch 999": (lambda tensors, values: values["position"].update(epoch=999), "epoch 999"),
    "words": (lambda tensors, values: values["position"].update(epoch="1"), "epoch 1"),
    "absent scaler": (lambda tensors, values: values.pop("scaler"), "scaler"),
    "scaler of another precision": (lambda tensors, values: values.update(scaler={"scale": 1.0}), "scaler"),
    "absent tensor of the optimizer": (lambda tensors, values: tensors.pop(BUFFER), "tensors"),
    "the same, of an earlier version": (
        lambda tensors, values: (tensors.pop(BUFFER), values.pop("format"), values.pop("num_tensors")), "1 parameters"
    ),
    "renamed tensor of the optimizer": (
        lambda tensors, values: rename(tensors, values, BUFFER, "optimizer.0.velocity"), "velocity"
    ),
    "tensor of an absent parameter": (
        lambda tensors, values: rename(tensors, values, BUFFER, "optimizer.9999.momentum_buffer"), "index"
    ),
    "tensor of another shape": (lambda tensors, values: tensors.update({BUFFER: torch.zeros(7)}), "shape"),
    "renamed weight": (lambda tensors, values: rename(tensors, values, "losses", "task.x"), "Unexpected key"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_CONTENTS)
def test_a_checkpoint_with_other_content_and_a_valid_checksum(tmp_path, name):
    change, message = WRONG_CONTENTS[name]
    assert attempt("sgd", tmp_path, 2) is None
    path = tmp_path / CHECKPOINT
    tensors, values = read_tensors(path)
    change(tensors, values)
    write_tensors(path, tensors, values)
    with pytest.raises(InputError, match=rf"{CHECKPOINT}: .*(?:{message}).* remove {CHECKPOINT}") as error:
        attempt("sgd", tmp_path)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_an_earlier_version_without_format(tmp_path):
    weights, records = train("sgd", tmp_path)
    assert attempt("sgd", tmp_path, 2) is None
    tensors, values = read_tensors(tmp_path / CHECKPOINT)
    del values["format"], values["num_tensors"]
    write_tensors(tmp_path / CHECKPOINT, tensors, values)
    resumed_weights, resumed_records = attempt("sgd", tmp_path)
    assert resumed_records == records
    assert are_equal(resumed_weights, weights)


def test_checkpoints_are_saved_when_they_are_due(tmp_path):
    positions = []

    class Recording(Checkpoint):
        def save(self, state):
            positions.append((state.position.epoch, state.position.step))
            super().save(state)

    for every, expected in ((0.0, [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]), (1e9, [])):
        positions.clear()
        task, source, make_optimizer, _ = CASES["sgd"](tmp_path)
        checkpoint = Recording(tmp_path / CHECKPOINT, "settings", every=every)
        list(fit(task, source, make_optimizer(task), lambda e: 0.1, 2, LoopOptions(checkpoint=checkpoint)))
        assert positions == expected
    checkpoint.remove()
    assert list(tmp_path.glob("*.safetensors")) == []


# ---- runs ----


def stop_at(monkeypatch, *points):
    """Stops at the points (stage, epoch, step), each once."""
    after_step, left = Checkpoint.after_step, list(points)

    def stop(self, state):
        point = (self.path.stem.removeprefix("checkpoint-"), state.position.epoch, state.position.step)
        if point in left:
            left.remove(point)
            self.signals.asked_to_stop = True
        after_step(self, state)

    monkeypatch.setattr(Checkpoint, "after_step", stop)
    return left


@pytest.mark.slow
def test_the_same_command_resumes_a_run(digits_run, tmp_path, monkeypatch):
    """Other settings are refused; a finished run is left as it is."""
    config, run = digits_run.config, longtail.Run(tmp_path / "run")
    left = stop_at(monkeypatch, ("experts", 2, 2), ("router", 2, 1))
    is_resumed = []  # of each stage: whether its display counts the time before the stop

    def progress(*arguments, seconds, **options):
        is_resumed.append(seconds > 0)
        return TrainingProgress(*arguments, seconds=seconds, **options)

    for module in ("experts", "frozen_stage"):
        monkeypatch.setattr(f"longtail.training.{module}.TrainingProgress", progress)
    for _ in range(2):
        with pytest.raises(Stopped):
            longtail.train(config, run.folder)
        with pytest.raises(InputError, match="exists"):
            longtail.train(digits({"seed": 1}), run.folder)
    longtail.train(config, run.folder)
    assert not left
    assert is_resumed == [False, True, False, True]
    assert_same_runs(digits_run.folder, run.folder)
    content = run.model_path.read_bytes()
    assert longtail.train(config, run.folder).is_finished
    assert run.model_path.read_bytes() == content


@pytest.mark.usefixtures("no_plots")
def test_a_damaged_model_beside_a_sound_checkpoint(single_expert_run, tmp_path, monkeypatch):
    """Training resumes from the checkpoint and replaces the model."""
    config = replace(single_expert_run.config, training=replace(single_expert_run.config.training, epochs=2))
    with monkeypatch.context() as patch:
        stop_at(patch, ("experts", 2, 1))
        with pytest.raises(Stopped):
            longtail.train(config, tmp_path / "run")
    run = longtail.Run(tmp_path / "run")
    run.model_path.write_bytes(b"damaged")
    assert longtail.resume(run).is_finished
    run.model_path.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"model\.safetensors: .* remove it, 'longtail train --resume'"):
        longtail.resume(run)


def test_paths_and_hardware_do_not_change_the_fingerprint_of_the_settings():
    fingerprint = longtail.config.recipes.config_fingerprint
    elsewhere = digits({"data.root": "elsewhere", "training.checkpoint_every": 1, "data.workers": 1, "device": "auto"})
    assert fingerprint(elsewhere) == fingerprint(digits())
    assert fingerprint(digits({"seed": 1})) != fingerprint(digits())


def test_a_run_in_use_is_not_changed(single_expert_run):
    content = single_expert_run.model_path.read_bytes()
    with single_expert_run.lock():
        for command in (longtail.evaluate, longtail.add_router):
            with pytest.raises(InputError, match="in use"):
                command(single_expert_run.folder)
    assert single_expert_run.model_path.read_bytes() == content


@pytest.mark.slow
def test_a_run_is_not_resumed_on_other_images(tmp_path, monkeypatch, no_plots):
    """The held-out test images would be drawn anew, and some of them would be images of the training."""
    photos = layouts.write_folder(tmp_path / "photos", counts=(20, 14, 9))
    settings = {"data.root": str(photos), "data.image_size": 16, "device": "cpu", "training.epochs": 3}
    settings |= {"model.backbone": "resnet20", "training.batch_size": 8, "router.train": True, "router.epochs": 2}
    config = load_recipe("folder-from-scratch", settings)
    for stage in ("experts", "router"):
        folder = tmp_path / stage
        with monkeypatch.context() as patch:
            stop_at(patch, (stage, 1, 1))
            with pytest.raises(Stopped):
                longtail.train(config, folder)
        image = photos / "class 0" / "0.jpg"
        content = image.read_bytes()
        image.unlink()
        with pytest.raises(InputError, match="training images"):
            longtail.resume(folder)
        image.write_bytes(content)
    assert longtail.resume(folder).is_finished
    elsewhere = load_recipe(folder / "config.yaml", {"data.root": str(photos) + "/."})
    with pytest.raises(InputError, match=r"finished.*data\.root"):
        longtail.train(elsewhere, folder)
