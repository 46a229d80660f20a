"""What is done to batches, against slow versions; and the pieces of training that large networks need."""

import math
import random

import numpy as np
import pytest
import torch
from helpers.loaders import CPU, Linear, loader, small_split

from longtail.config.recipes import load_recipe
from longtail.data.mixup import MixedLoader
from longtail.losses import CrossEntropyLoss
from longtail.models.multi_expert import create_model
from longtail.training.loop import fit, optim
from longtail.training.tasks import TrainExperts

CLASSES = 4


def mixed(batch_size=8, num=20, **options):
    return MixedLoader(loader(small_split(num), batch_size), CLASSES, device=CPU, **options)


def plain(batch_size=8, num=20):
    return list(loader(small_split(num), batch_size).epoch(1))


@pytest.mark.parametrize("batch_size", [8, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup(batch_size, smoothing):
    """Image i of a batch and image -1 - i, in shares that their targets tell."""
    seen = []
    for (images, labels, targets), (before, own) in zip(
        mixed(batch_size, mixup=0.8, label_smoothing=smoothing).epoch(1), plain(batch_size), strict=True
    ):
        assert torch.equal(labels, own)
        even = len(own) - len(own) % 2
        other = torch.arange(even - 1, -1, -1)
        hard = torch.nn.functional.one_hot(own, CLASSES) * (1 - smoothing) + smoothing / CLASSES
        partner = hard[:even][other]
        differs = (own[:even] != own[:even][other]).nonzero()[0]
        column = own[differs]
        share = ((targets[differs, column] - partner[differs, column]) / (1 - smoothing)).item()
        seen.append(share)
        torch.testing.assert_close(targets[:even], share * hard[:even] + (1 - share) * partner)
        torch.testing.assert_close(images[:even], share * before[:even] + (1 - share) * before[:even][other])
        torch.testing.assert_close(targets[even:], hard[even:])
        assert torch.equal(images[even:], before[even:])
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(own)))
    assert len(set(seen)) == len(seen)


def test_cutmix_exchanges_a_rectangle_and_its_share():
    cut = 0
    for (images, labels, targets), (before, _) in zip(mixed(cutmix=1.0).epoch(1), plain(), strict=True):
        other = before.flip(0)
        pasted = (images == other).all(dim=1)
        kept = (images == before).all(dim=1)
        assert (pasted | kept).all()
        changed = ~kept[0]
        rows, columns = changed.any(dim=1), changed.any(dim=0)
        assert torch.equal(changed, rows[:, None] & columns)
        share = 1 - changed.double().mean().item()
        hard = torch.nn.functional.one_hot(labels, CLASSES).float()
        torch.testing.assert_close(targets, share * hard + (1 - share) * hard.flip(0), atol=1e-6, rtol=0)
        cut += changed.any().item()
    assert cut


def test_both_take_turns():
    kinds = set()
    for epoch in range(1, 6):
        originals = list(loader(small_split(), 8).epoch(epoch))
        for (images, _, _), (before, _) in zip(mixed(mixup=0.8, cutmix=1.0).epoch(epoch), originals, strict=True):
            is_cut = ((images == before) | (images == before.flip(0))).all()
            kinds.add("cutmix" if is_cut else "mixup")
    assert kinds == {"cutmix", "mixup"}


def test_label_smoothing_alone():
    for (images, labels, targets), (before, _) in zip(mixed(label_smoothing=0.2).epoch(1), plain(), strict=True):
        assert torch.equal(images, before)
        expected = torch.full((len(labels), CLASSES), 0.05)
        expected[torch.arange(len(labels)), labels] = 0.85
        torch.testing.assert_close(targets, expected)


def test_random_erasing():
    """About the asked share of images gets one rectangle of normal noise; targets stay hard."""
    source = MixedLoader(loader(small_split(400, size=16), 100), CLASSES, random_erasing=0.25, device=CPU)
    originals = list(loader(small_split(400, size=16), 100).epoch(1))
    batches = list(source.epoch(1))
    assert all(len(batch) == 2 for batch in batches)
    changed = torch.cat([(new[0] != old[0]).any(dim=1) for new, old in zip(batches, originals, strict=True)])
    touched = changed.flatten(1).any(dim=1)
    assert touched.double().mean().item() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 400))
    for image in changed[touched]:
        assert torch.equal(image, image.any(dim=1)[:, None] & image.any(dim=0))
    noise = torch.cat([new[0].permute(0, 2, 3, 1).reshape(-1, 3) for new in batches])[changed.flatten()]
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_what_is_drawn_depends_on_seed_and_epoch_alone():
    options = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5}

    def draw(epoch, seed=0):
        return torch.cat([images for images, *_ in mixed(seed=seed, **options).epoch(epoch)])

    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = draw(2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    assert torch.equal(draw(2), first)
    assert not torch.equal(draw(3), first)
    assert not torch.equal(draw(2, seed=1), first)


# ---- steps ----


@pytest.mark.parametrize("parts", [2, 3, 8, 99])
def test_accumulation_gives_the_gradient_of_the_whole_batch(parts):
    losses = {}
    for accumulation in (1, parts):
        task = Linear(192, 4)
        optimizer = torch.optim.SGD(task.parameters(), 1.0)
        records = fit(task, loader(small_split(), 7), optimizer, lambda e: 0.1, 2, accumulation=accumulation)
        losses[accumulation] = [record["loss"] for record in records], task.layer.weight
    torch.testing.assert_close(losses[1], losses[parts])


def test_clipping():
    task, gradients = Linear(192, 4), []

    class ShowProgress(torch.optim.SGD):
        def step(self):
            squares = [p.grad.square().sum() for group in self.param_groups for p in group["params"]]
            gradients.append(torch.stack(squares).sum().sqrt().item())
            super().step()

    for limit in (None, 0.5):
        gradients.clear()
        list(
            fit(
                task, loader(small_split()), ShowProgress(task.parameters(), 1.0), lambda e: 0.0, 1, clip_gradient=limit
            )
        )
        assert len(gradients) == 3
        assert max(gradients) == pytest.approx(limit, rel=1e-4) if limit else min(gradients) > 0.6


def test_groups_of_swin():
    """No decay on anything one-dimensional or on position tables; the trunk at its own rate."""
    changes = {"training.trunk_learning_rate": 0.1, "training.batch_size": 512}
    config = load_recipe("imagenet-lt-swin-tiny-ride", changes)
    with torch.device("meta"):
        model = create_model(config.model.backbone, 10, 2, drop_path_rate=0.2)
    optimizer = optim.optimizer(config, TrainExperts(model, CrossEntropyLoss([1] * 10)))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    found = {p: group for group in optimizer.param_groups for p in group["params"]}
    tables = 0
    for name, parameter in model.named_parameters():
        table = "relative_position_bias_table" in name
        tables += table
        exempt = table or parameter.ndim == 1
        assert found.pop(parameter)["weight_decay"] == (0 if exempt else 0.2), name
    assert tables == 2 + 2 + 2 * (6 + 2)
    assert not found
    scales = {group["lr_scale"] for group in optimizer.param_groups}
    assert scales == {0.1, 1.0}
    trunk = {p for group in optimizer.param_groups if group["lr_scale"] == 0.1 for p in group["params"]}
    assert trunk == set(model.trunk.parameters())


def test_scaled_groups_get_their_share_of_the_rate():
    task = Linear(192, 4)
    groups = [{"params": [task.layer.weight], "lr_scale": 0.1}, {"params": [task.layer.bias]}]
    optimizer = torch.optim.SGD(groups, 1.0)
    before = [p.detach().clone() for p in (task.layer.weight, task.layer.bias)]
    images, labels = next(loader(small_split(), 20).epoch(1))
    task(images, labels, 1).loss.backward()
    gradients = [p.grad.clone() for p in (task.layer.weight, task.layer.bias)]
    list(fit(task, loader(small_split(), 20), optimizer, lambda e: 0.5, 1))
    torch.testing.assert_close(task.layer.weight, before[0] - 0.05 * gradients[0])
    torch.testing.assert_close(task.layer.bias, before[1] - 0.5 * gradients[1])
