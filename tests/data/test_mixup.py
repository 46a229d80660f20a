"""Mixup, cutmix, label smoothing and random erasing, against slow versions."""

import math
import random

import numpy as np
import pytest
import torch
from helpers.loaders import CPU, loader, small_split

from longtail.data.mixup import MixedLoader, MixSettings
from longtail.runtime.shard import Shard

CLASSES = 4


def mixed(batch_size=8, num=20, seed=0, **settings):
    return MixedLoader(loader(small_split(num), batch_size), CLASSES, MixSettings(**settings), seed=seed, device=CPU)


def unmixed(batch_size=8, num=20, epoch=1):
    return list(loader(small_split(num), batch_size).epoch(epoch))


@pytest.mark.parametrize("batch_size", [8, 7])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup(batch_size, smoothing):
    """Image i is mixed with image -1 - i of its batch, in the shares that the targets have."""
    shares = []
    for batch, before in zip(
        mixed(batch_size, mixup=0.8, label_smoothing=smoothing).epoch(1), unmixed(batch_size), strict=True
    ):
        labels, images, targets = before.labels, before.inputs, batch.soft_targets
        assert torch.equal(batch.labels, labels)
        even = len(labels) - len(labels) % 2
        partner = torch.arange(even - 1, -1, -1)
        hard = torch.nn.functional.one_hot(labels, CLASSES) * (1 - smoothing) + smoothing / CLASSES
        partner_targets = hard[:even][partner]
        differs = (labels[:even] != labels[:even][partner]).nonzero()[0]
        column = labels[differs]
        share = ((targets[differs, column] - partner_targets[differs, column]) / (1 - smoothing)).item()
        shares.append(share)
        torch.testing.assert_close(targets[:even], share * hard[:even] + (1 - share) * partner_targets)
        torch.testing.assert_close(batch.inputs[:even], share * images[:even] + (1 - share) * images[:even][partner])
        torch.testing.assert_close(targets[even:], hard[even:])
        assert torch.equal(batch.inputs[even:], images[even:])
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(len(labels)))
    assert len(set(shares)) == len(shares)


def test_groups_of_images_share_a_weight():
    """Each group is mixed as a batch of its own, with the weights that timm draws one after the other."""
    shares = []
    for batch, before in zip(mixed(8, 36, mixup=0.8, mix_images=4).epoch(2), unmixed(8, 36, 2), strict=True):
        for start in range(0, len(before.labels), 4):
            rows = slice(start, start + 4)
            images, given = before.inputs[rows], batch.inputs[rows]
            differences = (images.flip(0) - images).flatten()
            share = 1 - ((given - images).flatten() @ differences / (differences @ differences)).item()
            torch.testing.assert_close(given, share * images + (1 - share) * images.flip(0))
            hard = torch.nn.functional.one_hot(before.labels[rows], CLASSES)
            torch.testing.assert_close(batch.soft_targets[rows], share * hard + (1 - share) * hard.flip(0))
            shares.append(round(share, 6))
    assert len(shares) == 9
    assert len(set(shares)) > 7


def test_mixing_can_be_left_to_chance():
    """Half of the groups are not mixed; of the others, a quarter is cut."""
    mixed_groups, cut = 0, 0
    settings = {"mixup": 1.0, "cutmix": 1.0, "mix_images": 2, "mix_probability": 0.5, "cutmix_probability": 0.25}
    for batch, before in zip(mixed(400, 400, **settings).epoch(1), unmixed(400, 400), strict=True):
        for given, images in zip(batch.inputs.split(2), before.inputs.split(2), strict=True):
            mixed_groups += not torch.equal(given, images)
            cut += ((given == images) | (given == images.flip(0))).all().item() and not torch.equal(given, images)
    assert mixed_groups == pytest.approx(100, abs=4 * math.sqrt(50))
    assert cut / mixed_groups == pytest.approx(0.25, abs=0.15)


def test_sides_of_the_rectangle():
    for batch, before in zip(
        mixed(8, 80, cutmix=1.0, cutmix_range=(0.5, 0.75), mix_images=2).epoch(1), unmixed(8, 80), strict=True
    ):
        for given, images in zip(batch.inputs.split(2), before.inputs.split(2), strict=True):
            changed = (given != images).any(dim=1).any(dim=0)
            sides = changed.any(dim=1).sum().item(), changed.any(dim=0).sum().item()
            assert all(4 <= side <= 6 for side in sides)  # of 8 pixels


def test_cutmix_exchanges_a_rectangle_and_its_share():
    num_cut = 0
    for batch, before in zip(mixed(cutmix=1.0).epoch(1), unmixed(), strict=True):
        images, partners = before.inputs, before.inputs.flip(0)
        is_pasted = (batch.inputs == partners).all(dim=1)
        is_kept = (batch.inputs == images).all(dim=1)
        assert (is_pasted | is_kept).all()
        changed = ~is_kept[0]
        rows, columns = changed.any(dim=1), changed.any(dim=0)
        assert torch.equal(changed, rows[:, None] & columns)
        share = 1 - changed.double().mean().item()
        hard = torch.nn.functional.one_hot(batch.labels, CLASSES).float()
        torch.testing.assert_close(batch.soft_targets, share * hard + (1 - share) * hard.flip(0), atol=1e-6, rtol=0)
        num_cut += changed.any().item()
    assert num_cut


def test_mixup_and_cutmix_take_turns():
    kinds = set()
    for epoch in range(1, 6):
        for batch, before in zip(mixed(mixup=0.8, cutmix=1.0).epoch(epoch), unmixed(epoch=epoch), strict=True):
            is_cut = ((batch.inputs == before.inputs) | (batch.inputs == before.inputs.flip(0))).all()
            kinds.add("cutmix" if is_cut else "mixup")
    assert kinds == {"cutmix", "mixup"}


def test_label_smoothing_alone():
    for batch, before in zip(mixed(label_smoothing=0.2).epoch(1), unmixed(), strict=True):
        assert torch.equal(batch.inputs, before.inputs)
        expected = torch.full((len(batch.labels), CLASSES), 0.05)
        expected[torch.arange(len(batch.labels)), batch.labels] = 0.85
        torch.testing.assert_close(batch.soft_targets, expected)


def test_random_erasing():
    """The set share of the images gets one rectangle of normal noise; targets stay hard."""
    split = small_split(400, size=16)
    source = MixedLoader(loader(split, 100), CLASSES, MixSettings(random_erasing=0.25), device=CPU)
    before, after = list(loader(split, 100).epoch(1)), list(source.epoch(1))
    assert all(batch.soft_targets is None for batch in after)
    changed = torch.cat([(new.inputs != old.inputs).any(dim=1) for new, old in zip(after, before, strict=True)])
    is_erased = changed.flatten(1).any(dim=1)
    assert is_erased.double().mean().item() == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 400))
    for image in changed[is_erased]:
        assert torch.equal(image, image.any(dim=1)[:, None] & image.any(dim=0))
    pixels = torch.cat([batch.inputs.permute(0, 2, 3, 1).reshape(-1, 3) for batch in after])
    noise = pixels[changed.flatten()]
    assert noise.mean().item() == pytest.approx(0, abs=0.1)
    assert noise.std().item() == pytest.approx(1, abs=0.1)


def test_random_numbers_depend_on_seed_and_epoch_alone():
    settings = {"mixup": 0.8, "cutmix": 1.0, "random_erasing": 0.5}

    def images(epoch, seed=0):
        return torch.cat([batch.inputs for batch in mixed(seed=seed, **settings).epoch(epoch)])

    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = images(2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    assert torch.equal(images(2), first)
    assert not torch.equal(images(3), first)
    assert not torch.equal(images(2, seed=1), first)


def test_each_process_mixes_its_own_images():
    """Labels are those of the full batch; soft targets are those of the process's images."""
    split, settings = small_split(20), MixSettings(mixup=0.8)
    shards = [Shard(rank, 2) for rank in (0, 1)]
    sources = [MixedLoader(loader(split, 8, shard=shard), CLASSES, settings, device=CPU) for shard in shards]
    for first, second, full in zip(*(source.epoch(1) for source in sources), unmixed(), strict=True):
        for batch in (first, second):
            assert torch.equal(batch.labels, full.labels)
            assert len(batch.inputs) == len(batch.own_labels) == len(batch.soft_targets)
            has_label = batch.soft_targets.gather(1, batch.own_labels[:, None]) > 0
            assert has_label.all()
        assert len(first.inputs) + len(second.inputs) == len(full.labels)
        assert not torch.equal(first.soft_targets.max(dim=1).values, second.soft_targets.max(dim=1).values)
