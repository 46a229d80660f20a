import math

import numpy as np
import pytest
import torch
from helpers.loaders import Linear, loader, small_split

import longtail
from longtail.data.loaders import MemoryLoader, Normalise
from longtail.models import build as model_build
from longtail.models.multi_expert import create_model
from longtail.training.loop import CHECK_EVERY, DivergedError, fit, optim
from longtail.training.tasks import Step, TrainExperts


def test_loop_equals_the_textbook():
    """The same steps written out: rates, order, losses, accuracy and weights agree bit for bit."""
    split = small_split()
    rates = [0.5, 0.4, 0.3]
    task = Linear(192, 4)
    optimizer = torch.optim.SGD(task.parameters(), 1.0, momentum=0.9)
    records = list(fit(task, loader(split, shuffle=True), optimizer, lambda e: rates[int(e)], epochs=3))

    slow = Linear(192, 4)
    momentum = {p: torch.zeros_like(p) for p in slow.parameters()}
    for epoch, record in enumerate(records, start=1):
        losses, correct = [], 0
        for images, labels in loader(split, shuffle=True).epoch(epoch):
            loss, right = slow(images, labels, epoch)
            losses.append(loss.item())
            correct += right.item()
            for parameter, gradient in zip(
                slow.parameters(), torch.autograd.grad(loss, list(slow.parameters())), strict=True
            ):
                momentum[parameter].mul_(0.9).add_(gradient)
                with torch.no_grad():
                    parameter.add_(momentum[parameter], alpha=-rates[epoch - 1])
        assert record["epoch"] == epoch
        assert record["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
        assert record["accuracy"] == correct / 20
        assert record["learning_rate"] == rates[epoch - 1]
    assert torch.equal(task.layer.weight, slow.layer.weight)
    assert task.epochs == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_rate_is_asked_for_every_step():
    asked = []
    task = Linear(192, 4)
    optimizer = torch.optim.SGD(task.parameters(), 1.0)
    list(fit(task, loader(small_split()), optimizer, lambda e: asked.append(e) or 0.1, epochs=2))
    assert asked == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_epoch_step_and_rate(bad):
    class Diverges(Linear):
        def forward(self, images, labels, epoch):
            step = super().forward(images, labels, epoch)
            return Step(step.loss * bad, step.correct) if len(self.epochs) == 5 else step

    task = Diverges(192, 4)
    optimizer = torch.optim.SGD(task.parameters(), 1.0)
    with pytest.raises(DivergedError, match=r"epoch 2, step 2 of 3, learning rate 0\.25") as caught:
        list(fit(task, loader(small_split()), optimizer, lambda e: 0.25, epochs=9))
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_device_is_not_waited_for_at_every_step(monkeypatch):
    """Between two checks nothing asks for a number, which would wait for a GPU."""
    waits = []
    for name in ("item", "__float__", "__int__", "__index__", "__bool__", "nonzero", "tolist", "cpu", "numpy"):
        real = getattr(torch.Tensor, name)

        def pluralize(self, *arguments, _real=real, _name=name, **options):
            waits.append(_name)
            return _real(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, pluralize)
    split = small_split(num=4 * CHECK_EVERY)
    task = TrainExperts(create_model("resnet20", 4, 2), longtail.losses.RIDELoss([9, 5, 3, 1], reweight_after=1))
    optimizer = torch.optim.SGD(task.parameters(), 0.01)
    waits.clear()
    steps = 0
    for _ in fit(task, loader(split, 2, shuffle=True, padding=1, flip=True, rotation=5), optimizer, lambda e: 0.1, 2):
        steps += 2 * CHECK_EVERY
    assert steps == 4 * CHECK_EVERY
    # Per check one mean and one finite test, per epoch the record: far fewer than steps.
    assert len(waits) <= 10 * 4, waits


@pytest.mark.parametrize("shuffle", [False, True])
def test_labels_of_an_epoch_without_its_images(shuffle):
    source = loader(small_split(num=17), batch_size=4, shuffle=shuffle)
    for epoch in (1, 2):
        assert torch.equal(source.labels(epoch), torch.cat([labels for _, labels in source.epoch(epoch)]))


def test_memory_loader_order_seed_and_normalisation():
    split = small_split(num=10)
    plain = loader(split, batch_size=4)
    assert (len(plain), plain.num_images) == (3, 10)
    batches = list(plain.epoch(1))
    assert [len(labels) for _, labels in batches] == [4, 4, 2]
    images = torch.cat([images for images, _ in batches])
    expected = (split.pixels.astype(np.float64) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last)

    def epoch(number, seed=0):
        moving = loader(split, batch_size=4, seed=seed, shuffle=True, padding=2, flip=True, rotation=15)
        return [torch.cat(parts) for parts in zip(*moving.epoch(number), strict=True)]

    (first, order), (again, same), (other, another), (elsewhere, _) = epoch(1), epoch(1), epoch(2), epoch(1, seed=1)
    assert torch.equal(first, again)
    assert torch.equal(order, same)
    assert not torch.equal(first, other)
    assert sorted(order.tolist()) == sorted(another.tolist()) == sorted(split.labels.tolist())
    assert not torch.equal(first, elsewhere)


def test_criteria_follow_the_config():
    config = longtail.load_recipe(
        "cifar100-lt-ride", {"training.epochs": 40, "loss.max_margin": 0.3, "model.scale": 20}
    )
    ride = model_build.criterion(config, [50, 20, 5])
    assert (ride.reweight_after, ride.scale, ride.diversity_factor) == (32, 20, -0.45)
    assert ride.margins.max().item() == pytest.approx(0.3)
    plain = model_build.criterion(longtail.load_recipe("cifar100-lt-ce"), [50, 20, 5])
    assert plain.reweight_after is None
    assert type(plain).__name__ == "CrossEntropyLoss"


def test_optimisers_and_rates_follow_the_config():
    task = Linear(4, 2)
    sgd = optim.optimizer(longtail.load_recipe("cifar100-lt-ldam-drw"), task)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], sgd.defaults["weight_decay"]) == (0.9, False, 2e-4)
    adamw = optim.optimizer(longtail.load_recipe("cifar100-lt-ce", {"training.optimizer": "adamw"}), task)
    assert isinstance(adamw, torch.optim.AdamW)
    rate = optim.learning_rate(longtail.load_recipe("cifar100-lt-ride"))
    assert [rate(e) for e in (0, 4.9, 5, 159.9, 160, 179, 180)] == pytest.approx(
        [0.02, 0.1, 0.1, 0.1, 0.001, 0.001, 0.00001]
    )
    # A fifth of the epochs: every turning point moves along.
    short = optim.learning_rate(longtail.load_recipe("cifar100-lt-ride", {"training.epochs": 40}))
    assert [short(e) for e in (0, 1, 31, 32, 36)] == pytest.approx([0.1, 0.1, 0.1, 0.001, 0.00001])
    cosine = optim.learning_rate(longtail.load_recipe("cifar100-lt-ride", {"training.schedule": "cosine"}))
    assert cosine(100) == pytest.approx(0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for_at_every_step():
    device = torch.device("cuda")
    split = small_split(num=2 * (CHECK_EVERY - 1))
    moving = MemoryLoader(
        split,
        2,
        device=device,
        normalise=Normalise([0.5] * 3, [0.25] * 3, device),
        shuffle=True,
        padding=1,
        flip=True,
        rotation=5,
    )
    task = TrainExperts(create_model("resnet20", 4, 2), longtail.losses.RIDELoss([9, 5, 3, 1])).to(device)
    optimizer = torch.optim.SGD(task.parameters(), 0.01)
    batches = list(moving.epoch(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for images, labels in batches:
            task(images, labels, 1).loss.backward()
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
