"""The outputs of frozen experts: which images are drawn, and what is computed."""

import numpy as np
import pytest
import torch
from helpers.loaders import images_and_labels, loader, small_split

from longtail.data.samplers import LongTailSampler
from longtail.data.splits import ImageSplit
from longtail.models.multi_expert import create_model, create_router
from longtail.training.cached_outputs import CachedOutputs, ComputedOutputs, cache_bytes
from longtail.training.loop import fit
from longtail.training.tasks import TrainRouter


class CountingTrunk(torch.nn.Module):
    """Counts the images that go through the trunk."""

    def __init__(self, trunk):
        super().__init__()
        self.trunk, self.images = trunk, 0

    def forward(self, images):
        self.images += len(images)
        return self.trunk(images)


def counting_model():
    torch.manual_seed(0)
    model = create_model("resnet20", 4, 3).eval()
    model.trunk = CountingTrunk(model.trunk)
    return model


def source(batch_size=8, sampler=None):
    return loader(small_split(40), batch_size, shuffle=True, sampler=sampler, padding=1, flip=True)


def cached_outputs(batch_size: int = 6, views: int = 1):
    model, images = counting_model(), source()
    return model, images, CachedOutputs(model, images, batch_size=batch_size, seed=1, views=views)


def train(router, outputs, epochs):
    optimizer = torch.optim.SGD(router.parameters(), 0.01, momentum=0.9)
    return list(fit(TrainRouter(router, 4.0), outputs, optimizer, lambda epoch: 0.01, epochs))


def test_rows_are_outputs_for_images_of_the_first_epoch():
    """Classes are drawn equally often, and each image is computed once."""
    model, images, outputs = cached_outputs()
    pixels, labels = images_and_labels(images.epoch(1))
    with torch.no_grad():
        logits, features, *_ = model(pixels)
    model.trunk.images = 0
    drawn_labels = []
    for epoch in (1, 2):
        batches = list(outputs.epoch(epoch))
        assert [len(batch.labels) for batch in batches] == [6] * 6 + [4]
        assert len(batches) == len(outputs)
        for batch in batches:
            for row, feature, label in zip(batch.inputs.logits, batch.inputs.features, batch.labels, strict=True):
                position = (logits - row).abs().amax(dim=(1, 2)).argmin()
                torch.testing.assert_close(logits[position], row, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(features[position], feature, rtol=1e-4, atol=1e-4)
                assert labels[position] == label
                drawn_labels.append(label)
        assert model.trunk.images == 40
    counts = torch.bincount(torch.stack(drawn_labels), minlength=4)
    assert counts.min() > 8  # of 80; the rarest class has 6 of 40 images


def test_epochs_take_turns_with_the_views():
    """With three views, epochs 2 and 5 have the images of the loader's epoch 2, and epoch 3 those of epoch 3."""
    model, images, outputs = cached_outputs(views=3)
    with torch.no_grad():
        logits = {view: torch.cat([model(batch.inputs).logits for batch in images.epoch(view)]) for view in (1, 2, 3)}
    model.trunk.images = 0
    for epoch, computed in ((2, 40), (5, 40), (3, 80)):
        batches = list(outputs.epoch(epoch))
        rows = torch.cat([batch.inputs.logits for batch in batches])
        for view, expected in logits.items():  # an image may be augmented in the same way in two views
            is_found = (expected[None] - rows[:, None]).abs().amax(dim=(2, 3)).amin(dim=1) < 1e-4
            assert is_found.all() == (view == (3 if epoch == 3 else 2))
        assert model.trunk.images == computed


def test_draws_of_a_batch_are_independent():
    """As many different images, and as much variation of the rare classes' share, as independent draws have."""
    counts = [2000, 600, 300, 100, 60]
    labels = np.repeat(np.arange(len(counts)), counts)
    images = loader(ImageSplit(labels, pixels=np.zeros((len(labels), 8, 8, 3), np.uint8)), 256, shuffle=True)
    outputs = CachedOutputs(create_model("resnet20", 5, 2).eval(), images, batch_size=50, seed=0)
    order = images.labels(1)
    distinct, shares = [], []
    for epoch in range(1, 6):
        drawn = outputs._draw(order, epoch)
        distinct += [len(batch.unique()) for batch in drawn.split(50)]
        shares += [(batch >= 3).double().mean() for batch in order[drawn].split(50)]
    random = np.random.default_rng(0)
    weights = 1 / (len(counts) * np.array(counts)[labels])
    expected = [len(set(random.choice(len(labels), 50, p=weights))) for _ in range(300)]
    assert np.mean(distinct) > np.mean(expected) - 1  # images of a class take turns, so there are more
    assert np.std(shares) < 1.2 * np.sqrt(0.4 * 0.6 / 50)


def test_an_epoch_can_start_in_the_middle():
    for outputs in (cached_outputs()[2], computed_outputs()):
        expected, batches = list(outputs.epoch(2))[3:], list(outputs.epoch(2, 3))
        assert len(batches) == len(expected) == 4
        for batch, same in zip(batches, expected, strict=True):
            assert torch.equal(batch.inputs.logits, same.inputs.logits)
            assert torch.equal(batch.labels, same.labels)


def computed_outputs():
    sampler = LongTailSampler(small_split(40).labels, "class-balanced")
    return ComputedOutputs(counting_model(), source(6, sampler), 4)


def test_outputs_without_a_cache():
    """Those of the loader's batches, a few images at a time."""
    outputs = computed_outputs()
    model, images = outputs._model, outputs._loader
    for batch, given in zip(outputs.epoch(3), images.epoch(3), strict=True):
        with torch.no_grad():
            expected = model(given.inputs)
        torch.testing.assert_close(batch.inputs.logits, expected.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(batch.inputs.features, expected.features, rtol=1e-4, atol=1e-4)
        assert torch.equal(batch.labels, given.labels)
    assert (len(outputs), outputs.num_images, outputs.batch_size) == (7, 40, 6)
    assert [len(batch.inputs.logits) for batch in outputs.epoch(1)] == [6] * 6 + [4]


def test_memory_of_the_cache():
    model, _, outputs = cached_outputs(views=3)
    list(outputs.epoch(1))
    logits, _, features = outputs._cache[1]
    assert cache_bytes(model, 40, views=3) == 3 * 4 * (logits.numel() + features.numel())


@pytest.mark.parametrize("cached", [True, False])
def test_training_a_router_lowers_its_loss(cached):
    outputs = cached_outputs(40)[2] if cached else computed_outputs()
    losses = [record["loss"] for record in train(create_router(outputs._model), outputs, 30)]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
