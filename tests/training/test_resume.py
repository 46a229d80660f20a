"""A training that is stopped anywhere and gone on with is the training that was never stopped, bit for bit."""

import logging

import pytest
import torch
from helpers import layouts
from helpers.loaders import CPU, loader, small_split
from helpers.runs import same, untimed

import longtail
from longtail.data.image_loader import FileLoader
from longtail.data.loaders import Normalise
from longtail.data.mixup import MixedLoader
from longtail.data.sources.files import folder
from longtail.data.transforms import train_transform
from longtail.losses import RIDELoss
from longtail.models.multi_expert import create_model, create_router
from longtail.runtime.device import Runtime
from longtail.runtime.process import Signals, Stopped
from longtail.training.cached_outputs import FrozenOutputs
from longtail.training.checkpoint import Checkpoint
from longtail.training.loop import fit, optim
from longtail.training.tasks import TrainExperts, TrainRouter
from longtail.utils.errors import InputError
from longtail.utils.files import read_tensors, write_tensors

EPOCHS = 3


def memory(tmp_path):
    return loader(small_split(num=20), 8, shuffle=True, padding=1, flip=True, rotation=9.0)


def mixed(tmp_path):
    return MixedLoader(
        memory(tmp_path), 4, mixup=0.8, cutmix=1.0, label_smoothing=0.1, random_erasing=0.5, seed=3, device=CPU
    )


def files(tmp_path, workers=0):
    root = tmp_path / "photos"
    if not root.exists():
        layouts.write_folder(root)
    transform = train_transform(16, "resized", 0, (0.2, 1.0), True, 10.0, (0.3, 0.3, 0.3, 0.1), None, "bicubic",
                                "rand-m9-mstd0.5-inc1")  # fmt: skip
    options = {"device": CPU, "normalise": Normalise([0.5] * 3, [0.25] * 3, CPU), "seed": 2}
    return FileLoader(folder(root, 0.2, 0).train, transform, 8, shuffle=True, workers=workers, **options)


def experts(name="resnet20", **options):
    torch.manual_seed(0)
    return TrainExperts(create_model(name, 4, 2, **options), RIDELoss([9, 5, 3, 1], reweight_after=1))


def sgd(task):
    return optim.optimizer(longtail.load_recipe("cifar100-lt-ride"), task)


def adamw(task):
    return optim.optimizer(longtail.load_recipe("cifar100-lt-ride", {"training.optimizer": "adamw"}), task)


def router(tmp_path):
    model = experts().model.eval()
    outputs = FrozenOutputs(model, memory(tmp_path), batch_size=6, cache_gib=1.0, seed=5)
    torch.manual_seed(1)
    return TrainRouter(create_router(model, top_choices=3), 2.0), outputs


CASES = {
    "sgd": lambda where: (experts(), memory(where), sgd, {}),
    "adamw, mixed, dropped paths": lambda where: (
        experts("resnet10", drop_path_rate=0.5, drop_rate=0.2), mixed(where), adamw, {"clip_gradient": 1.0}
    ),
    "accumulated, fp16": lambda where: (
        experts(), memory(where), sgd, {"accumulation": 2, "runtime": Runtime(CPU, "fp16")}
    ),
    "files": lambda where: (experts(), files(where), sgd, {}),
    "files and workers": lambda where: (experts(), files(where, workers=2), adamw, {"runtime": Runtime(CPU, "bf16")}),
    "router": lambda where: (*router(where), sgd, {}),
}  # fmt: skip


def attempt(case, where, stop_after=None):
    """Trains from the checkpoint, if there is one, to the end or for so many steps: weights and records, or None."""
    task, source, make, options = CASES[case](where)
    signals = Signals()
    checkpoint = Checkpoint(where / "checkpoint.safetensors", "mine", every=1e9, signals=signals)
    records, done = checkpoint.records, 0

    def on_step(*progress):
        nonlocal done
        done += 1
        signals.asked_to_stop = done == stop_after

    options = {"seed": 7, "checkpoint": checkpoint, **options}
    try:
        for record in fit(task, source, make(task), lambda epoch: 0.02 * (1 + epoch), EPOCHS, on_step, **options):
            record["looked at"] = record["epoch"] / 10  # as validation adds to a record
            records.append(record)
    except Stopped:
        return None
    weights = {name: value.clone() for name, value in task.state_dict().items()}
    return weights, untimed(records)


def trained(case, where, stops=()):
    """Stopped after each of these numbers of steps, pluralize from the last stop, and begun afresh each time."""
    for number in stops:
        assert attempt(case, where, number) is None
    return attempt(case, where)


@pytest.mark.parametrize("case", CASES)
def test_stopped_and_gone_on_with(case, tmp_path):
    weights, records = trained(case, tmp_path)
    assert [record["epoch"] for record in records] == [1, 2, 3]
    steps = len(CASES[case](tmp_path)[1])
    every_step = [1] * (EPOCHS * steps)
    for stops in ([1], [steps], [steps + 1, steps], [2, 3, 1, 1], every_step):
        (tmp_path / "checkpoint.safetensors").unlink(missing_ok=True)
        (tmp_path / "checkpoint.before.safetensors").unlink(missing_ok=True)
        ours, theirs = trained(case, tmp_path, stops)
        assert theirs == records, stops
        assert all(torch.equal(value, ours[name]) for name, value in weights.items()), stops


def test_a_damaged_checkpoint_has_one_before_it(tmp_path, caplog):
    weights, records = trained("sgd", tmp_path)
    last, before = tmp_path / "checkpoint.safetensors", tmp_path / "checkpoint.before.safetensors"
    for harm in (lambda content: content[:-9], flipped, lambda content: b"", lambda content: content[:3]):
        for path in (last, before):
            path.unlink(missing_ok=True)
        for _ in range(2):
            assert attempt("sgd", tmp_path, 2) is None
        last.write_bytes(harm(last.read_bytes()))
        ours, theirs = trained("sgd", tmp_path)
        assert f"{last}: " in caplog.text
        assert theirs == records
        assert all(torch.equal(value, ours[name]) for name, value in weights.items())
    # Neither is good: from the beginning.
    for path in (last, before):
        path.write_bytes(b"no")
    assert not Checkpoint(last, "mine").is_there


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def test_a_checkpoint_of_other_settings(tmp_path):
    trained_once = Signals()
    trained_once.asked_to_stop = True
    path = tmp_path / "checkpoint.safetensors"
    task, source, make, _ = CASES["sgd"](tmp_path)
    with pytest.raises(Stopped):
        list(fit(task, source, make(task), lambda e: 0.1, 1, checkpoint=Checkpoint(path, "a", signals=trained_once)))
    assert Checkpoint(path, "a").is_there
    with pytest.raises(InputError, match="was saved with other settings"):
        Checkpoint(path, "b")
    assert not Checkpoint(path, "b", strict=False).is_there
    other = TrainExperts(create_model("resnet32", 4, 2), RIDELoss([9, 5, 3, 1]))
    with pytest.raises(InputError, match=r"checkpoint\.safetensors: it is of another training"):
        list(fit(other, source, make(other), lambda e: 0.1, 1, checkpoint=Checkpoint(path, "a")))


def test_checkpoints_come_when_they_are_due(tmp_path):
    saved = []

    class Counting(Checkpoint):
        def save(self, state):
            saved.append((state.position.epoch, state.position.step))
            super().save(state)

    for every, expected in ((0.0, [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]), (1e9, [])):
        saved.clear()
        task, source, make, _ = CASES["sgd"](tmp_path)
        checkpoint = Counting(tmp_path / "checkpoint.safetensors", every=every)
        list(fit(task, source, make(task), lambda e: 0.1, 2, checkpoint=checkpoint))
        assert saved == expected
    checkpoint.remove()
    assert list(tmp_path.glob("*.safetensors")) == []


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    import errno

    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, {"a": torch.ones(3)}, {"n": 1})
    content = path.read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    for where in ("longtail.utils.files.os.fsync", "longtail.utils.files.save_file"):
        with monkeypatch.context() as patch:
            patch.setattr(where, full)
            with pytest.raises(InputError, match="could not be written: No space left on device"):
                write_tensors(path, {"a": torch.zeros(3)}, {"n": 2}, keep=tmp_path / "before")
        assert path.read_bytes() == content
        assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_tensor_files(tmp_path):
    path, kept = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    tensors = {
        "x": torch.randn(3, 4),
        "n": torch.tensor(3),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    write_tensors(path, tensors, {"what": [1, 2.5, None, "ü"]})
    found, description = read_tensors(path)
    assert description == {"what": [1, 2.5, None, "ü"]}
    assert all(torch.equal(value, found[name]) for name, value in tensors.items())
    first = path.read_bytes()
    write_tensors(path, tensors, {"what": [1, 2.5, None, "ü"]}, keep=kept)
    assert path.read_bytes() == kept.read_bytes() == first
    for position in range(0, len(first), 37):
        path.write_bytes(first[:position] + bytes([first[position] ^ 4]) + first[position + 1 :])
        with pytest.raises(InputError, match=r"a\.safetensors"):
            read_tensors(path)


def test_the_same_command_goes_on(tmp_path, monkeypatch, caplog):
    """With the same settings a run is gone on with, or left as it is when it is finished; others are refused."""
    settings = {"training.epochs": 3, "router.epochs": 2, "device": "cpu"}
    config = longtail.load_recipe("digits-lt-ride", settings)
    whole = longtail.train(config, tmp_path / "whole")
    real = Checkpoint.after_step
    stages = []

    def stopping(self, state):
        if (self.path.stem, state.position.epoch, state.position.step) in (
            ("checkpoint-experts", 2, 2), ("checkpoint-experts", 3, 6), ("checkpoint-router", 2, 1)
        ) and self.path.name not in stages[-2:]:  # fmt: skip
            stages.append(self.path.name)
            self.signals.asked_to_stop = True
        real(self, state)

    monkeypatch.setattr(Checkpoint, "after_step", stopping)
    runs = 0
    while not longtail.Run(tmp_path / "run").config_path.exists() or not longtail.Run(tmp_path / "run").is_finished:
        runs += 1
        try:
            longtail.train(config, tmp_path / "run")
        except Stopped:
            other = longtail.load_recipe("digits-lt-ride", {**settings, "seed": 1})
            with pytest.raises(InputError, match="exists already"):
                longtail.train(other, tmp_path / "run")
    assert runs >= 3
    assert "checkpoint-router.safetensors" in stages
    same(whole.folder, tmp_path / "run")
    content = longtail.Run(tmp_path / "run").model_path.read_bytes()
    assert longtail.train(config, tmp_path / "run").is_finished  # nothing is left to do
    assert longtail.Run(tmp_path / "run").model_path.read_bytes() == content
    moved = longtail.load_recipe(
        "digits-lt-ride", {**settings, "data.root": "elsewhere", "training.checkpoint_every": 1}
    )
    assert longtail.config.recipes.config_fingerprint(moved) == longtail.config.recipes.config_fingerprint(config)


def test_a_run_folder_in_use_is_refused(tmp_path):
    config = longtail.load_recipe("digits-lt-ce", {"training.epochs": 1, "device": "cpu"})
    run = longtail.train(config, tmp_path / "run")
    content = run.model_path.read_bytes()
    with run.lock():
        for command in (longtail.evaluate, longtail.add_router):
            with pytest.raises(InputError, match="is in use by another longtail process"):
                command(run.folder)
    assert run.model_path.read_bytes() == content
    longtail.evaluate(run.folder)


def test_signals(monkeypatch):
    import os
    import signal

    before = signal.getsignal(signal.SIGTERM)
    with Signals().caught() as signals:
        with signals.postponed():
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked_to_stop
            for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):  # passed on by others, or a key that bounced
                os.kill(os.getpid(), number)
            monkeypatch.setattr("longtail.runtime.process.TWICE", -1.0)
            with pytest.raises(KeyboardInterrupt):  # meant
                os.kill(os.getpid(), signal.SIGINT)
            signals.asked_to_stop = False
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped), signals.postponed():  # nobody looked
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_damage_is_told(tmp_path, caplog):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(b"no")
    with caplog.at_level(logging.WARNING):
        assert not Checkpoint(path).is_there
    assert "not used" in caplog.text


def test_other_images_are_refused(tmp_path, monkeypatch):
    """What was held out for the test would be drawn anew, and hold images that were trained on."""
    photos = layouts.write_folder(tmp_path / "photos", counts=(20, 14, 9))
    settings = {"data.root": str(photos), "data.image_size": 16, "device": "cpu", "training.epochs": 3}
    settings |= {"model.backbone": "resnet20", "training.batch_size": 8, "router.train": True, "router.epochs": 2}
    config = longtail.load_recipe("folder", settings)
    for stage in ("experts", "router"):
        folder, real = tmp_path / stage, Checkpoint.after_step

        def stopping(self, state, stage=stage, real=real):
            self.signals.asked_to_stop = stage in self.path.name
            real(self, state)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "after_step", stopping)
            with pytest.raises(Stopped):
                longtail.train(config, folder)
        gone = photos / "class 0" / "0.jpg"
        content = gone.read_bytes()
        gone.unlink()
        with pytest.raises(InputError, match=r"other training images|training images of data set"):
            longtail.resume(folder)
        gone.write_bytes(content)
    assert longtail.resume(folder).is_finished
    elsewhere = longtail.load_recipe(folder / "config.yaml", {"data.root": str(photos) + "/."})
    with pytest.raises(InputError, match=r"is finished, with data\.root"):
        longtail.train(elsewhere, folder)
