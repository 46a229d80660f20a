"""Teachers, routers, and stages that are picked up where they stopped."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import golden
from helpers.loaders import loader, small_split
from safetensors.torch import load_file

import longtail
from longtail import api
from longtail.config.recipes import load_recipe
from longtail.config.schema import Config
from longtail.data import build as data_build
from longtail.losses import CrossEntropyLoss, DistilledLoss, distillation
from longtail.models.multi_expert import create_model, create_router
from longtail.runs.context import RunContext
from longtail.runs.run import Run
from longtail.runtime.device import Runtime
from longtail.training import experts, optim
from longtail.training import teacher as teacher_module
from longtail.training.cached_outputs import FrozenOutputs
from longtail.training.experts import Experts
from longtail.training.tasks import DistillExperts, TrainRouter, teaching
from longtail.utils.errors import InputError

QUICK = {"training.epochs": 2, "device": "cpu", "router.epochs": 3, "data.val_spare": 0, "router.train": False}


def digits(**changes) -> Config:
    return load_recipe("digits-lt-ride", {**QUICK, "router.max_accuracy_drop": None, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return longtail.train(digits(), tmp_path_factory.mktemp("runs") / "experts")


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.model_path)


# ---- distillation ----


def test_a_teacher_is_followed_and_left_alone():
    """The loss is the student's own and the distance to the teacher; the teacher gets no gradient and stays in eval."""
    torch.manual_seed(0)
    student, teacher = create_model("resnet20", 4, 2), create_model("resnet20", 4, 3)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    own = CrossEntropyLoss([5, 4, 3, 2])
    task = DistillExperts(student, DistilledLoss(own, factor=0.5), teaching(teacher)).train()
    images, labels = next(loader(small_split(), 20).epoch(1))
    logits = student(images).logits
    expected = own(logits, labels, 1) + 0.5 * distillation(logits, teacher.eval()(images).ensemble)
    loss, _ = task(images, labels, 1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    loss.backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert set(task.state_dict()) == {f"model.{name}" for name in student.state_dict()}


def test_a_run_a_file_and_a_recipe_teach(run, tmp_path, monkeypatch):
    plain = weights(run)
    by_run = longtail.train(digits(teacher=str(run.folder)), tmp_path / "a")
    by_file = longtail.train(digits(teacher=str(run.model_path)), tmp_path / "b")
    assert all(torch.equal(value, weights(by_file)[name]) for name, value in weights(by_run).items())
    assert any(not torch.equal(value, plain[name]) for name, value in weights(by_run).items())

    # A recipe: trained first, on the student's data, by its own settings otherwise; the student is then the same.
    (tmp_path / "mine.yaml").write_text("base: digits-lt-ce\ntraining: {epochs: 1}\n")
    config = digits(teacher=str(tmp_path / "mine.yaml"), **{"data.imbalance_factor": 0.1, "seed": 3})
    by_recipe = longtail.train(config, tmp_path / "c")
    teacher = Run.open(tmp_path / "c" / "teacher")
    assert teacher.is_finished
    assert (teacher.config.data, teacher.config.seed) == (config.data, 3)
    assert (teacher.config.training.epochs, teacher.config.model.num_experts) == (1, 1)
    again = longtail.train(replace(config, teacher=str(teacher.folder)), tmp_path / "d")
    assert all(torch.equal(value, weights(again)[name]) for name, value in weights(by_recipe).items())


def test_published_arithmetic_is_a_setting(run, tmp_path):
    changes = {"teacher": str(run.folder), "training.epochs": 1}
    mine = longtail.train(digits(**changes), tmp_path / "a").history()[0]["loss"]
    published = longtail.train(digits(**changes, **{"distillation.published": True}), tmp_path / "b")
    assert published.history()[0]["loss"] > 2 * mine  # everything counts once for each of three experts


@pytest.mark.skipif(golden.ROOT == golden.SMALL, reason=f"{golden.WHOLE} is absent")
def test_a_checkpoint_of_the_original_teaches(tmp_path):
    config = load_recipe("cifar100-lt-ride")
    context = RunContext(Run(tmp_path), config, fake_cifar(), Runtime(), None)
    teacher = teacher_module.load_teacher(golden.ROOT / "ckpt" / "imbalance_cifar100_ride3.pth", context)
    assert (teacher.num_experts, teacher.num_classes) == (3, 100)


def fake_cifar():
    from longtail.data.splits import DataSplits, ImageSplit

    split = ImageSplit(np.arange(100), pixels=np.zeros((100, 32, 32, 3), np.uint8))
    return DataSplits(split, None, split, tuple(f"class {k}" for k in range(100)))


def test_other_teachers_are_refused(run, tmp_path):
    def teach(student_names, teacher_names):
        metadata = RunContext(run, digits(), data_build.load_data(digits()), Runtime(), None).metadata()
        return teacher_module._other_classes(
            replace(metadata, class_names=teacher_names), replace(metadata, class_names=student_names)
        )

    assert teach(("a", "b"), ("a", "b")) == ""
    assert "another order" in teach(("a", "b"), ("b", "a"))
    text = teach(("cat", "dog", "cow"), ("cat", "emu", "dog"))
    assert "only the teacher has emu" in text
    assert "only the student has cow" in text
    for name, says in {
        "no-such-thing.safetensors": "which is not there",
        "runs/none": "which is not there",
        "digits-lt-rid": "did you mean 'digits-lt-ride'",
        str(tmp_path): "not a run folder",
    }.items():
        with pytest.raises(InputError, match=says):
            longtail.train(digits(teacher=name), tmp_path / "out")
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"images have mean .*, and the student's"):
        longtail.train(digits(teacher=str(run.folder), **{"data.mean": [0.1, 0.1, 0.1]}), tmp_path / "out")
    (tmp_path / "self.yaml").write_text(f"base: digits-lt-ce\nteacher: {tmp_path / 'self.yaml'}\n")
    with pytest.raises(InputError, match="its own teacher"):
        longtail.train(load_recipe(tmp_path / "self.yaml"), tmp_path / "out")
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{one}.yaml").write_text(f"base: digits-lt-ce\nteacher: {tmp_path / other}.yaml\n")
    with pytest.raises(InputError, match="its own teacher"):
        longtail.train(load_recipe(tmp_path / "a.yaml"), tmp_path / "out")
    (tmp_path / "vit.yaml").write_text("base: digits-lt-ce\nmodel: {backbone: vit_tiny_patch16_224, width: full}\n")
    plain = {"data.mean": None, "data.std": None, "data.image_size": 32}
    with pytest.raises(InputError, match=r"vit\.yaml': its images have mean"):
        longtail.train(digits(teacher=str(tmp_path / "vit.yaml"), **plain), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- the router's stage ----


class Counting(torch.nn.Module):
    """Passes images on and counts them."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.images = trunk, 0

    def forward(self, images):
        self.images += len(images)
        return self.trunk(images)


def frozen(cache_gib: float, batch_size: int = 6, views: int = 1):
    torch.manual_seed(0)
    model = create_model("resnet20", 4, 3).eval()
    model.trunk = Counting(model.trunk)
    source = loader(small_split(40), 8, shuffle=True, padding=1, flip=True)
    return model, source, FrozenOutputs(model, source, batch_size=batch_size, cache_gib=cache_gib, seed=1, views=views)


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_draws_of_what_experts_say(cache_gib):
    """Every row is what the model says of one image of the loader's first epoch; each is seen at most once a pass."""
    model, source, outputs = frozen(cache_gib)
    assert outputs.is_cached == (cache_gib > 0)
    with torch.no_grad():
        images, labels = (torch.cat(part) for part in zip(*source.epoch(1), strict=True))
        logits, features = model(images)
    model.trunk.images = 0
    drawn = []
    for epoch in (1, 2):
        batches = list(outputs.epoch(epoch))
        assert [len(batch[1]) for batch in batches] == [6] * 6 + [4]
        assert len(batches) == len(outputs)
        for some_logits, some_labels, some_features in batches:
            for row, label, feature in zip(some_logits, some_labels, some_features, strict=True):
                at = (logits - row).abs().amax(dim=(1, 2)).argmin()
                torch.testing.assert_close(logits[at], row, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(features[at], feature, rtol=1e-4, atol=1e-4)
                assert labels[at] == label
                drawn.append((epoch, at.item(), label.item()))
        # With a cache one pass is enough; without one each image is computed once an epoch.
        assert model.trunk.images == (40 if cache_gib else 40 * epoch)
        assert torch.equal(outputs.labels(epoch), torch.cat([labels for _, labels, _ in batches]))
    counts = torch.bincount(torch.tensor([label for _, _, label in drawn]), minlength=4)
    assert counts.min() > 8  # of 80; the rarest class has 6 of 40 images


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_epochs_take_turns_with_the_views(cache_gib):
    """Three views: the second and the fifth epoch are of the loader's second one, the third of another."""
    model, source, outputs = frozen(cache_gib, views=3)
    with torch.no_grad():
        logits = {view: torch.cat([model(images).logits for images, _ in source.epoch(view)]) for view in (1, 2, 3)}
    model.trunk.images = 0
    for number, epoch in enumerate((2, 5, 3), start=1):
        drawn = list(outputs.epoch(epoch))
        assert torch.equal(outputs.labels(epoch), torch.cat([labels for _, labels, _ in drawn]))
        rows = torch.cat([part for part, _, _ in drawn])
        for view, own in logits.items():  # an image may be changed in the same way in two views
            found = (own[None] - rows[:, None]).abs().amax(dim=(2, 3)).amin(dim=1) < 1e-4
            assert found.all() == (view == (3 if epoch == 3 else 2))
        assert model.trunk.images == 40 * (number if cache_gib == 0 else (1, 1, 2)[number - 1])


def test_a_cache_gives_the_same_router_as_computing_anew():
    """Bit for bit."""
    routers = []
    for cache_gib in (1.0, 0.0):
        model, _, outputs = frozen(cache_gib)
        torch.manual_seed(1)
        router = create_router(model)
        optimizer = torch.optim.SGD(router.parameters(), 0.01, momentum=0.9)
        list(longtail.training.loop.fit(TrainRouter(router, 4.0), outputs, optimizer, lambda epoch: 0.01, 3))
        routers.append(router.state_dict())
    assert all(torch.equal(value, routers[1][name]) for name, value in routers[0].items())


def test_training_a_router_lowers_its_loss():
    model, _, outputs = frozen(1.0, 40)
    router = create_router(model)
    task, optimizer = TrainRouter(router, 4.0), torch.optim.SGD(router.parameters(), 0.01, momentum=0.9)
    losses = [record["loss"] for record in longtail.training.loop.fit(task, outputs, optimizer, lambda epoch: 0.01, 30)]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_only_the_router_changes(run, tmp_path):
    """Frozen bit for bit, running statistics too; and the experts' results stay."""
    before, results = weights(run), json.loads((run.folder / "results.json").read_text())
    api.add_router(run, config=replace(run.config, router=replace(run.config.router, epochs=2)))
    after, metadata = weights(run), run.load_model()[1]
    assert all(torch.equal(value, after.pop(name)) for name, value in before.items())
    assert after
    assert all(name.startswith("router.") for name in after)
    assert metadata.architecture["router"] == {"top_choices": 30, "hidden": 16, "shared": True, "threshold": 0.5}
    assert run.config.router.train
    again = json.loads((run.folder / "results.json").read_text())
    for name in ("accuracy", "balanced", "per_class", "experts"):
        assert again["test"][name] == results["test"][name]
    assert len(json.loads((run.folder / "router.json").read_text())["epochs"]) == 2
    # Another one replaces it.
    first = {name: value for name, value in weights(run).items() if name.startswith("router.")}
    api.add_router(run, config=replace(run.config, router=replace(run.config.router, hidden=8, shared=False)))
    second = weights(run)
    assert second["router.hidden.0.weight"].shape[0] == 8
    assert "router.output.1.weight" in second
    assert "router.output.1.weight" not in first
    longtail.load_model(run.folder).route(torch.zeros(2, 3, 8, 8))


def test_both_stages_in_one_command_are_those_one_after_the_other(tmp_path):
    config = digits(**{"router.train": True})
    both = longtail.train(config, tmp_path / "both")
    apart = longtail.train(digits(), tmp_path / "apart")
    api.add_router(apart, config=replace(apart.config, router=config.router))
    assert all(torch.equal(value, weights(apart)[name]) for name, value in weights(both).items())
    assert both.is_finished


def test_an_interrupted_router_stage_is_picked_up(tmp_path, monkeypatch):
    config = digits(**{"router.train": True})
    whole = longtail.train(config, tmp_path / "whole")

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(api, "train_router", interrupt)
        with pytest.raises(KeyboardInterrupt):
            longtail.train(config, tmp_path / "parts")
    run = Run(tmp_path / "parts")
    assert not run.is_finished
    assert run.epochs_done == 2
    monkeypatch.setattr(Experts, "train", interrupt)  # they are done: nothing may train them again
    longtail.api.resume(run)
    assert run.is_finished
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(run).items())
    with pytest.raises(InputError, match="is finished"):
        longtail.api.resume(run)
    with pytest.raises(InputError, match="not a run folder"):
        longtail.api.resume(tmp_path)


def test_an_interrupted_attempt_is_kept_until_something_takes_its_place(tmp_path, monkeypatch):
    config = digits(**{"training.epochs": 4})
    whole = longtail.train(config, tmp_path / "whole")
    real = experts.fit

    def stopped(after):
        def fit(*arguments, **options):
            for number, record in enumerate(real(*arguments, **options)):
                if number == after:
                    raise KeyboardInterrupt
                yield record

        return fit

    run = Run(tmp_path / "run")
    for after, done in ((2, 2), (0, 2)):  # the second attempt does not complete an epoch
        monkeypatch.setattr(experts, "fit", stopped(after))
        with pytest.raises(KeyboardInterrupt):
            api.resume(run) if run.config_path.exists() else longtail.train(config, run.folder)
        assert (run.epochs_done, len(run.history())) == (done, done)
    monkeypatch.setattr(experts, "fit", real)
    api.resume(run)
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(run).items())
    assert len(run.history()) == 4


def test_an_interrupted_test_is_all_that_is_made_up_for(tmp_path, monkeypatch):
    config = digits(**{"router.train": True})
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(api, "evaluate_splits", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            longtail.train(config, run.folder)
    trained = weights(run)
    for name in ("Experts", "train_router"):
        monkeypatch.setattr(api, name, None)
    api.resume(run)
    assert run.is_finished
    assert all(torch.equal(value, trained[name]) for name, value in weights(run).items())


def test_a_converted_run_is_not_trained_over(run, tmp_path):
    converted = Run(tmp_path / "run")
    with converted.lock():
        converted.start(run.config, {"converted_from": "x.pth"})
    with pytest.raises(InputError, match="was converted"):
        api.resume(converted)


def test_a_router_leaves_the_settings_of_the_experts(run):
    other = replace(run.config, seed=5, training=replace(run.config.training, epochs=9), device="cpu")
    before = run.config
    api.add_router(run, config=replace(other, router=replace(other.router, epochs=1)))
    assert replace(run.config, router=before.router) == before
    assert run.config.router.epochs == 1


def test_what_a_network_draws_depends_on_the_seed_and_step_alone(tmp_path):
    config = digits(**{"model.backbone": "resnet10", "model.drop_path_rate": 0.5, "training.epochs": 1})
    first = longtail.train(config, tmp_path / "a")
    torch.manual_seed(99)
    second = longtail.train(config, tmp_path / "b")
    assert all(torch.equal(value, weights(second)[name]) for name, value in weights(first).items())


def test_an_impossible_budget_is_found_before_training(tmp_path):
    for budget in (0.5, "1M"):
        config = load_recipe("digits-lt-ride", {"router.max_accuracy_drop": None, "router.compute_budget": budget})
        with pytest.raises(InputError, match="below the first expert's cost"):
            longtail.train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_finished_teacher_is_not_trained_again(tmp_path, monkeypatch):
    config = digits(teacher="digits-lt-ce")
    short = load_recipe("digits-lt-ce", {"training.epochs": 1})
    monkeypatch.setattr(teacher_module, "recipe", lambda name: short)
    whole = longtail.train(config, tmp_path / "whole")
    real, calls = Experts.train, []

    def second_is_interrupted(self, *arguments):
        calls.append(self.context.run.folder.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(self, *arguments)

    monkeypatch.setattr(Experts, "train", second_is_interrupted)
    with pytest.raises(KeyboardInterrupt):
        longtail.train(config, tmp_path / "parts")
    longtail.api.resume(tmp_path / "parts")
    assert calls == ["teacher", "parts", "parts"]
    assert all(torch.equal(value, weights(whole)[n]) for n, value in weights(Run(tmp_path / "parts")).items())


def test_a_student_that_fails_keeps_its_teacher(tmp_path, monkeypatch):
    short = load_recipe("digits-lt-ce", {"training.epochs": 1})
    monkeypatch.setattr(teacher_module, "recipe", lambda name: short)
    config = digits(teacher="digits-lt-ce", **{"training.learning_rate": 1e30, "training.warmup": 0})
    with pytest.raises(longtail.InputError, match="the loss is"):
        longtail.train(config, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert Run(run.teacher_folder).is_finished
    assert run.config == config


def test_a_single_expert_gets_no_router(tmp_path):
    single = longtail.train(load_recipe("digits-lt-ce", {"training.epochs": 1, "device": "cpu"}), tmp_path / "one")
    with pytest.raises(InputError, match="has one expert; a router chooses among several"):
        api.add_router(single)
    with pytest.raises(InputError, match=r"router\.train"):
        load_recipe("digits-lt-ce", {"router.train": True})


def test_learning_rate_of_the_router():
    config = load_recipe("digits-lt-ride", {"router.epochs": 5})
    rate = optim.router_learning_rate(config)
    theirs = golden.arrays("schedules/ride_lr.npz")["ea_cosine/lr"]
    np.testing.assert_allclose([rate(epoch + 0.5) for epoch in range(5)], theirs[:5], rtol=1e-9)


# ---- the choice of the threshold ----


@pytest.fixture(scope="module")
def routed(tmp_path_factory) -> Run:
    config = load_recipe("digits-lt-ride", {"training.epochs": 8, "device": "cpu", "router.epochs": 10})
    return longtail.train(config, tmp_path_factory.mktemp("runs") / "routed")


def routing(run: Run, part: str = "val") -> dict:
    return json.loads((run.folder / "results.json").read_text())[part]["routing"]


def test_the_threshold_is_chosen_on_validation_images(routed):
    """By the recipe: the cheapest of all thresholds that loses at most 0.2 points there, by brute force."""
    found, threshold = routing(routed), routed.load_model()[0].router.threshold
    assert found["threshold"] == threshold
    assert found["chosen_on"] == "val"
    assert routing(routed, "test")["threshold"] == threshold
    best = max(found["curve"], key=lambda point: point["cost"])["balanced"] - 0.002
    cheapest = min(point["cost"] for point in found["curve"] if point["balanced"] >= best - 1e-12)
    assert found["cost"] == pytest.approx(cheapest)
    assert found["balanced"] >= best - 1e-12


def test_results_of_routing_are_those_of_the_model(routed):
    model, metadata = routed.load_model()
    dataset = data_build.load_data(routed.config)
    test = data_build.eval_loader(routed.config, dataset, dataset.test, Runtime())
    with torch.inference_mode():
        answers = [(model.route(images), labels) for images, labels in test.epoch(0)]
    used = torch.cat([out.experts_used for out, _ in answers])
    right = torch.cat([out.logits.argmax(dim=1) == labels for out, labels in answers])
    found = routing(routed, "test")
    assert found["accuracy"] == pytest.approx(right.double().mean().item())
    assert found["shares"] == pytest.approx((torch.bincount(used - 1, minlength=3) / len(used)).tolist())
    assert found["mean_experts"] == pytest.approx(used.double().mean().item())
    cost = longtail.evaluation.flops.cost(model, metadata.image_size)
    assert found["cost"] == pytest.approx(cost.expected(found["shares"]))


def test_another_choice_after_training(routed, tmp_path):
    """It is kept with the model, and nothing else changes."""
    before, was = weights(routed), routed.load_model()[1]
    for wish in ({"compute_budget": "1.3"}, {"compute_budget": "1.9M"}, {"max_accuracy_drop": 50.0}):
        api.evaluate(routed, **wish)
        found = routing(routed)
        assert routed.load_model()[0].router.threshold == found["threshold"]
        if limit := wish.get("compute_budget"):
            assert found["cost"] <= (1.3 * found["curve"][0]["cost"] if limit == "1.3" else 1.9e6)
        else:
            assert found["relative_cost"] == pytest.approx(1)
        assert all(torch.equal(value, before[name]) for name, value in weights(routed).items())
    metadata = routed.load_model()[1]
    assert metadata.threshold_for == "max_accuracy_drop 50"
    assert {**metadata.architecture, "router": {}} == {**was.architecture, "router": {}}
    with pytest.raises(InputError, match="below the first expert's cost"):
        api.evaluate(routed, compute_budget="0.5")


def test_no_choice_without_validation_images_or_router(run, routed, tmp_path):
    blind = replace(routed.config, data=replace(routed.config.data, val_spare=0))
    with pytest.raises(InputError, match="no validation images"):
        api.evaluate(routed, config=blind, compute_budget="1.2")
    single = longtail.train(load_recipe("digits-lt-ce", {"training.epochs": 1, "device": "cpu"}), tmp_path / "one")
    with pytest.raises(InputError, match="has no router"):
        api.evaluate(single, compute_budget="1.2")


def test_spare_images_are_those_that_the_tail_leaves_out():
    config = load_recipe("digits-lt-ride")
    spare, none = (
        data_build.load_data(config),
        data_build.load_data(replace(config, data=replace(config.data, val_spare=0))),
    )
    assert none.val is None
    assert np.array_equal(spare.train.pixels, none.train.pixels)
    left = 114 - np.array(spare.class_counts)
    assert np.bincount(spare.val.labels, minlength=10).tolist() == np.minimum(left, 20).tolist()
    pictures = {image.tobytes() for image in (*spare.train.pixels, *spare.test.pixels)}
    assert sum(image.tobytes() in pictures for image in spare.val.pixels) == 0
