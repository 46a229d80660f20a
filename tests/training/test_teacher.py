"""Distillation: what teaches (a run, a file, a recipe, an original checkpoint), and which teachers do not fit."""

import shutil
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import golden
from helpers.loaders import loader, small_split
from helpers.runs import EXPERTS_ONLY, are_equal, digits, weights

import longtail
from longtail.config.recipes import load_recipe
from longtail.data.splits import DataSplits, ImageSplit
from longtail.losses import CrossEntropyLoss, DistilledLoss, distillation
from longtail.models.multi_expert import create_model
from longtail.runs.context import RunContext
from longtail.runs.model_file import save_model
from longtail.runs.run import Run
from longtail.runtime.device import Runtime
from longtail.runtime.process import Stopped
from longtail.training import teacher as teacher_module
from longtail.training.checkpoint import Checkpoint
from longtail.training.experts import ExpertStage
from longtail.training.tasks import TrainExperts, teacher_function
from longtail.training.teacher import find_teacher
from longtail.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("no_plots")


def student(teacher, **changes):
    return digits(EXPERTS_ONLY | {"teacher": str(teacher)} | changes)


def test_the_loss_includes_the_distance_to_the_teacher():
    """The teacher gets no gradient and stays in eval mode."""
    torch.manual_seed(0)
    model, teacher = create_model("resnet20", 4, 2), create_model("resnet20", 4, 3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    criterion = CrossEntropyLoss([5, 4, 3, 2])
    task = TrainExperts(model, DistilledLoss(criterion, factor=0.5), teach=teacher_function(teacher)).train()
    batch = next(loader(small_split(), 20).epoch(1))
    logits = model(batch.inputs).logits
    expected = criterion(logits, batch.labels, 1) + 0.5 * distillation(logits, teacher.eval()(batch.inputs).ensemble)
    loss, _ = task(batch, 1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training
    assert are_equal(teacher.state_dict(), before)
    assert set(task.state_dict()) == {f"model.{name}" for name in model.state_dict()}


@pytest.mark.slow
def test_a_run_and_its_model_file_teach_the_same(experts_run, tmp_path):
    by_run = longtail.train(student(experts_run.folder), tmp_path / "by run")
    by_file = longtail.train(student(experts_run.model_path), tmp_path / "by file")
    assert are_equal(weights(by_run), weights(by_file))
    assert not are_equal(weights(by_run), weights(experts_run))


def test_a_run_resumes_only_with_its_own_teacher(experts_run, tmp_path, monkeypatch):
    path, changes = tmp_path / "teacher.safetensors", {"training.checkpoint_every": 0, "training.epochs": 1}
    shutil.copy(experts_run.model_path, path)
    run, calls = Run(tmp_path / "run"), []

    def interrupt_second_step(self, state):
        calls.append(self.save(state))
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "after_step", interrupt_second_step)
        with pytest.raises(Stopped):
            longtail.train(student(path, **changes), run.folder)
    model, metadata = experts_run.load_model()
    model.heads[0].weight.data[0, 0] += 1
    save_model(path, model, metadata)
    with pytest.raises(InputError, match=r"saved with another teacher; restore that one, or remove checkpoint-experts"):
        longtail.resume(run)
    shutil.copy(experts_run.model_path, path)
    longtail.resume(run)
    assert run.is_finished


@pytest.mark.slow
def test_a_recipe_is_trained_first_and_then_teaches(tmp_path):
    """It is trained on the student's data and seed, and otherwise with its own settings."""
    (tmp_path / "mine.yaml").write_text("base: digits-lt-ce\ntraining: {epochs: 1}\n")
    config = student(tmp_path / "mine.yaml", **{"data.imbalance_factor": 0.1, "seed": 3})
    by_recipe = longtail.train(config, tmp_path / "by recipe")
    teacher = Run.open(tmp_path / "by recipe" / "teacher")
    assert teacher.is_finished
    assert (teacher.config.data, teacher.config.seed) == (config.data, 3)
    assert (teacher.config.training.epochs, teacher.config.model.num_experts) == (1, 1)
    by_run = longtail.train(replace(config, teacher=str(teacher.folder)), tmp_path / "by run")
    assert are_equal(weights(by_recipe), weights(by_run))


def test_a_teacher_with_batch_statistics():
    """As in training mode, whatever its running statistics are; dropout stays off."""
    torch.manual_seed(0)
    teacher, images = create_model("resnet10", 4, 2, drop_path_rate=0.5), torch.randn(6, 3, 32, 32)
    for name, value in teacher.named_buffers():
        if name.endswith("running_mean"):
            value.fill_(3.0)
    teach, by_running = teacher_function(deepcopy(teacher), batch_statistics=True), teacher_function(deepcopy(teacher))
    reference = create_model("resnet10", 4, 2)
    reference.load_state_dict(teacher.state_dict())
    first, again = teach(images), teach(images)
    assert torch.equal(first, again)  # the running statistics have changed and do not matter
    torch.testing.assert_close(first, reference.train()(images).ensemble.detach())
    assert not torch.allclose(first, by_running(images))
    assert not first.requires_grad


def test_settings_of_a_recipe_that_teaches(experts_run, tmp_path):
    changes = {"distillation.teacher_settings": ["training.epochs=7", "loss.max_margin=0.3"]}
    teacher = find_teacher(student("digits-lt-ce", **changes))
    assert (teacher.training.epochs, teacher.loss.max_margin, teacher.model.num_experts) == (7, 0.3, 1)
    with pytest.raises(InputError, match="trained already"):
        find_teacher(student(experts_run.folder, **changes))


@pytest.mark.slow
def test_the_published_arithmetic_is_a_setting(experts_run, tmp_path):
    changes = {"training.epochs": 1}
    ours = longtail.train(student(experts_run.folder, **changes), tmp_path / "ours").history()
    changes["distillation.published"] = True
    published = longtail.train(student(experts_run.folder, **changes), tmp_path / "published").history()
    assert published[0]["loss"] > 2 * ours[0]["loss"]  # it counts the loss once for each of three experts


@pytest.mark.skipif(golden.ROOT == golden.SMALL, reason=f"{golden.FULL} is absent")
def test_an_original_checkpoint_teaches(tmp_path):
    images = ImageSplit(np.arange(100), pixels=np.zeros((100, 32, 32, 3), np.uint8))
    dataset = DataSplits(images, None, images, tuple(f"class {k}" for k in range(100)))
    context = RunContext(Run(tmp_path), load_recipe("cifar100-lt-ride"), dataset, Runtime())
    path = golden.ROOT / "ckpt" / "imbalance_cifar100_ride3.pth"
    teacher = teacher_module.load_teacher(path, context)
    assert (teacher.num_experts, teacher.num_classes) == (3, 100)


# ---- teachers that do not fit ----


@pytest.mark.parametrize(
    ("teacher_names", "student_names", "facts"),
    [
        (("a", "b"), ("a", "b"), []),
        (("b", "a"), ("a", "b"), ["order"]),
        (("cat", "emu", "dog"), ("cat", "dog", "cow"), ["teacher has emu", "student has cow"]),
    ],
)
def test_the_classes_of_a_teacher_are_compared(experts_run, teacher_names, student_names, facts):
    _, metadata = experts_run.load_model()
    teacher, of_student = (replace(metadata, class_names=names) for names in (teacher_names, student_names))
    difference = teacher_module._class_difference(teacher, of_student)
    assert bool(difference) == bool(facts)
    assert all(fact in difference for fact in facts)


@pytest.mark.parametrize(
    ("teacher", "facts"),
    [
        ("no-such-thing.safetensors", "no-such-thing.safetensors"),
        ("runs/none", "runs/none"),
        ("digits-lt-rid", "did you mean 'digits-lt-ride'"),
        (".", "not a run folder"),
    ],
)
def test_a_teacher_that_does_not_exist(tmp_path, teacher, facts):
    with pytest.raises(InputError, match=facts):
        longtail.train(student(teacher), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_of_teacher_and_student_must_be_prepared_alike(experts_run, tmp_path):
    with pytest.raises(InputError, match=r"mean .*0\.3.*0\.1"):
        longtail.train(student(experts_run.folder, **{"data.mean": [0.1, 0.1, 0.1]}), tmp_path / "run")
    (tmp_path / "vit.yaml").write_text("base: digits-lt-ce\nmodel: {backbone: vit_tiny_patch16_224, width: full}\n")
    own_format = {"data.mean": None, "data.std": None, "data.image_size": 32}
    with pytest.raises(InputError, match=r"vit\.yaml'.* mean"):
        longtail.train(student(tmp_path / "vit.yaml", **own_format), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_circular_teachers(tmp_path):
    teachers = {"self": "self", "a": "b", "b": "a"}
    for name, teacher in teachers.items():
        (tmp_path / f"{name}.yaml").write_text(f"base: digits-lt-ce\nteacher: {tmp_path / teacher}.yaml\n")
    for name in ("self", "a"):
        with pytest.raises(InputError, match=rf"{teachers[name]}\.yaml'.*circular"):
            longtail.train(load_recipe(tmp_path / f"{name}.yaml"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- a teacher within its student's run ----


@pytest.fixture
def short_teacher(monkeypatch):
    """The recipe digits-lt-ce with one epoch, as teacher."""
    short = digits({"training.epochs": 1}, "digits-lt-ce")
    monkeypatch.setattr(teacher_module, "load_recipe", lambda name: short)
    return "digits-lt-ce"


@pytest.mark.slow
def test_a_finished_teacher_is_not_trained_again(short_teacher, tmp_path, monkeypatch):
    config = student(short_teacher)
    expected = longtail.train(config, tmp_path / "expected")
    train, calls = ExpertStage.train, []

    def second_is_interrupted(self, *arguments):
        calls.append(self.context.run.folder.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return train(self, *arguments)

    monkeypatch.setattr(ExpertStage, "train", second_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        longtail.train(config, tmp_path / "run")
    run = longtail.resume(tmp_path / "run")
    assert calls == ["teacher", "run", "run"]
    assert are_equal(weights(run), weights(expected))


@pytest.mark.slow
def test_a_student_that_fails_keeps_its_teacher(short_teacher, tmp_path):
    config = student(short_teacher, **{"training.learning_rate": 1e30, "training.warmup": 0})
    with pytest.raises(longtail.InputError, match="loss"):
        longtail.train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert Run(run.teacher_folder).is_finished
    assert run.config == config
