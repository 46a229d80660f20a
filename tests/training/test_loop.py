"""The training loop against the same steps written out, and the loaders' batches."""

import math

import numpy as np
import pytest
import torch
from helpers.loaders import Linear, images_and_labels, loader, small_split

from longtail.data.loaders import Batch, BatchAugmentation, EpochOrder, MemoryLoader, Normalise
from longtail.losses import RIDELoss
from longtail.models.multi_expert import create_model
from longtail.training import loop
from longtail.training.loop import LoopOptions, fit
from longtail.training.tasks import Step, TrainExperts
from longtail.utils.errors import InputError

AUGMENTED = {"shuffle": True, "padding": 1, "flip": True, "rotation": 5}


def sgd(task, **options):
    return torch.optim.SGD(task.parameters(), 1.0, **options)


def test_loop_matches_the_textbook():
    """The same steps written out: rates, order, losses, accuracy and weights are equal bit for bit."""
    split = small_split()
    rates = [0.5, 0.4, 0.3]
    task = Linear(192, 4)
    records = list(fit(task, loader(split, shuffle=True), sgd(task, momentum=0.9), lambda e: rates[int(e)], 3))

    slow = Linear(192, 4)
    momentum = {p: torch.zeros_like(p) for p in slow.parameters()}
    for epoch, record in enumerate(records, start=1):
        losses, num_correct = [], 0
        for batch in loader(split, shuffle=True).epoch(epoch):
            loss, correct = slow(batch, epoch)
            losses.append(loss.item())
            num_correct += correct.item()
            gradients = torch.autograd.grad(loss, list(slow.parameters()))
            for parameter, gradient in zip(slow.parameters(), gradients, strict=True):
                momentum[parameter].mul_(0.9).add_(gradient)
                with torch.no_grad():
                    parameter.add_(momentum[parameter], alpha=-rates[epoch - 1])
        assert record["epoch"] == epoch
        assert record["loss"] == pytest.approx(np.mean(losses), rel=1e-6)
        assert record["accuracy"] == num_correct / 20
        assert record["learning_rate"] == rates[epoch - 1]
    assert torch.equal(task.layer.weight, slow.layer.weight)
    assert task.epochs == [1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_the_learning_rate_is_computed_for_every_step():
    calls, steps = [], []
    task = Linear(192, 4)
    options = LoopOptions(on_step=lambda done, rate, loss: steps.append((done, rate, loss is not None)))
    list(fit(task, loader(small_split()), sgd(task), lambda e: calls.append(e) or 0.1, 2, options))
    assert calls == pytest.approx([0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3])
    assert steps == [(1, 0.1, False), (2, 0.1, False), (3, 0.1, True)] * 2


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_diverged_loss_is_reported_with_epoch_step_and_rate(factor):
    class Diverges(Linear):
        def forward(self, batch, epoch):
            step = super().forward(batch, epoch)
            return Step(step.loss * factor, step.correct) if len(self.epochs) == 5 else step

    task = Diverges(192, 4)
    with pytest.raises(InputError, match=r"epoch 2, step 2 of 3, learning rate 0\.25") as caught:
        list(fit(task, loader(small_split()), sgd(task), lambda e: 0.25, 9))
    assert str(factor) in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- one step ----


@pytest.mark.parametrize("parts", [2, 3, 8, 99])
def test_accumulation_gives_the_gradient_of_the_full_batch(parts):
    losses = {}
    for accumulation in (1, parts):
        task = Linear(192, 4)
        records = fit(task, loader(small_split(), 7), sgd(task), lambda e: 0.1, 2, LoopOptions(accumulation))
        losses[accumulation] = [record["loss"] for record in records], task.layer.weight
    torch.testing.assert_close(losses[1], losses[parts])


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
@pytest.mark.parametrize("rows", [None, slice(2, 9)])
def test_parts_of_a_batch_keep_the_labels_of_the_full_batch(parts, rows):
    labels = torch.arange(12)
    own = labels if rows is None else labels[rows]
    batch = Batch(own[:, None].float(), labels, rows, own[:, None] + torch.tensor([0.25, 0.5]))
    divided = batch.divide(parts)
    assert len(divided) == parts
    assert max(len(part.inputs) for part in divided) - min(len(part.inputs) for part in divided) <= 1
    for part in divided:
        assert torch.equal(part.labels, labels)
        assert torch.equal(part.own_labels, part.inputs[:, 0].long())
        assert torch.equal(part.soft_targets[:, 0] - 0.25, part.inputs[:, 0])
    assert torch.equal(torch.cat([part.inputs for part in divided]), batch.inputs)
    assert all(part.soft_targets is None for part in batch._replace(soft_targets=None).divide(parts))


def test_the_gradient_is_clipped_to_its_largest_norm():
    task, norms = Linear(192, 4), []

    class Recording(torch.optim.SGD):
        def step(self):
            squares = [p.grad.square().sum() for group in self.param_groups for p in group["params"]]
            norms.append(torch.stack(squares).sum().sqrt().item())
            super().step()

    for limit in (None, 0.5):
        norms.clear()
        options = LoopOptions(clip_gradient=limit)
        list(fit(task, loader(small_split()), Recording(task.parameters(), 1.0), lambda e: 0.0, 1, options))
        assert len(norms) == 3
        assert max(norms) == pytest.approx(limit, rel=1e-4) if limit else min(norms) > 0.6


def test_parameter_groups_have_their_share_of_the_rate():
    task = Linear(192, 4)
    groups = [{"params": [task.layer.weight], "lr_scale": 0.1}, {"params": [task.layer.bias]}]
    before = [p.detach().clone() for p in (task.layer.weight, task.layer.bias)]
    task(next(loader(small_split(), 20).epoch(1)), 1).loss.backward()
    gradients = [p.grad.clone() for p in (task.layer.weight, task.layer.bias)]
    list(fit(task, loader(small_split(), 20), torch.optim.SGD(groups, 1.0), lambda e: 0.5, 1))
    torch.testing.assert_close(task.layer.weight, before[0] - 0.05 * gradients[0])
    torch.testing.assert_close(task.layer.bias, before[1] - 0.5 * gradients[1])


# ---- no wait for the device ----


def test_the_loop_reads_no_number_between_two_checks(monkeypatch):
    """Each read would wait for a GPU. Epochs with one check, at their end, have as many reads with more steps."""
    reads = []
    for name in ("item", "__float__", "__int__", "__index__", "__bool__", "nonzero", "tolist", "cpu", "numpy"):
        method = getattr(torch.Tensor, name)

        def count(self, *arguments, _method=method, _name=name, **options):
            reads.append(_name)
            return _method(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, count)
    task = TrainExperts(create_model("resnet20", 4, 2), RIDELoss([9, 5, 3, 1], reweight_after=1))
    reads_of_steps = {}
    for steps in (5, 15):
        reads.clear()
        source = loader(small_split(num=2 * steps), 2, **AUGMENTED)
        list(fit(task, source, sgd(task), lambda e: 0.1, 2))
        reads_of_steps[steps] = list(reads)
    assert reads_of_steps[5] == reads_of_steps[15] != []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_does_not_wait_for_it():
    device = torch.device("cuda")
    split = small_split(num=2 * (loop.CHECK_EVERY - 1))
    augmented = MemoryLoader(
        split,
        EpochOrder(len(split), 2, shuffle=True),
        device=device,
        normalise=Normalise([0.5] * 3, [0.25] * 3, device),
        augmentation=BatchAugmentation(1, True, 5),
    )
    task = TrainExperts(create_model("resnet20", 4, 2), RIDELoss([9, 5, 3, 1])).to(device)
    optimizer = sgd(task)
    batches = list(augmented.epoch(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            task(batch, 1).loss.backward()
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- batches of images in memory ----


@pytest.mark.parametrize("shuffle", [False, True])
def test_labels_of_an_epoch_without_its_images(shuffle):
    source = loader(small_split(num=17), batch_size=4, shuffle=shuffle)
    for epoch in (1, 2):
        assert torch.equal(source.labels(epoch), images_and_labels(source.epoch(epoch))[1])


def test_images_in_memory_are_normalised_and_in_order():
    split = small_split(num=10)
    plain = loader(split, batch_size=4)
    assert (len(plain), plain.num_images) == (3, 10)
    batches = list(plain.epoch(1))
    assert [len(batch.labels) for batch in batches] == [4, 4, 2]
    assert all(batch.rows is None and batch.soft_targets is None for batch in batches)
    images, labels = images_and_labels(batches)
    expected = (split.pixels.astype(np.float64) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(images.permute(0, 2, 3, 1), expected, atol=1e-5)
    assert labels.tolist() == split.labels.tolist()
    assert batches[0].inputs.is_contiguous(memory_format=torch.channels_last)


def test_order_and_augmentation_depend_on_seed_and_epoch_alone():
    split = small_split(num=10)

    def epoch(number, seed=0):
        augmented = loader(split, 4, seed=seed, shuffle=True, padding=2, flip=True, rotation=15)
        return images_and_labels(augmented.epoch(number))

    images, labels = epoch(1)
    repeated_images, repeated_labels = epoch(1)
    next_images, next_labels = epoch(2)
    assert torch.equal(images, repeated_images)
    assert torch.equal(labels, repeated_labels)
    assert not torch.equal(images, next_images)
    assert not torch.equal(images, epoch(1, seed=1)[0])
    assert sorted(labels.tolist()) == sorted(next_labels.tolist()) == sorted(split.labels.tolist())
