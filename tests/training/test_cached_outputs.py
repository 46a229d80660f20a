"""The outputs of frozen experts: which images are drawn, what is computed, and with and without a cache the same."""

import numpy as np
import pytest
import torch
from helpers.loaders import images_and_labels, loader, small_split
from helpers.runs import are_equal

from longtail.models.multi_expert import create_model, create_router
from longtail.training.cached_outputs import FrozenOutputs
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


def frozen_outputs(cache_gib: float, batch_size: int = 6, views: int = 1):
    torch.manual_seed(0)
    model = create_model("resnet20", 4, 3).eval()
    model.trunk = CountingTrunk(model.trunk)
    source = loader(small_split(40), 8, shuffle=True, padding=1, flip=True)
    return model, source, FrozenOutputs(model, source, batch_size=batch_size, cache_gib=cache_gib, seed=1, views=views)


def train(router, outputs, epochs):
    optimizer = torch.optim.SGD(router.parameters(), 0.01, momentum=0.9)
    return list(fit(TrainRouter(router, 4.0), outputs, optimizer, lambda epoch: 0.01, epochs))


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_rows_are_outputs_for_images_of_the_first_epoch(cache_gib):
    """Classes are drawn equally often, and each image is computed at most once an epoch."""
    model, source, outputs = frozen_outputs(cache_gib)
    assert outputs.is_cached == (cache_gib > 0)
    images, labels = images_and_labels(source.epoch(1))
    with torch.no_grad():
        logits, features, *_ = model(images)
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
        assert model.trunk.images == (40 if cache_gib else 40 * epoch)
        assert torch.equal(outputs.labels(epoch), torch.cat([batch.labels for batch in batches]))
    counts = torch.bincount(torch.stack(drawn_labels), minlength=4)
    assert counts.min() > 8  # of 80; the rarest class has 6 of 40 images


@pytest.mark.parametrize("cache_gib", [1.0, 0.0])
def test_epochs_take_turns_with_the_views(cache_gib):
    """With three views, epochs 2 and 5 have the images of the loader's epoch 2, and epoch 3 those of epoch 3."""
    model, source, outputs = frozen_outputs(cache_gib, views=3)
    with torch.no_grad():
        logits = {view: torch.cat([model(batch.inputs).logits for batch in source.epoch(view)]) for view in (1, 2, 3)}
    model.trunk.images = 0
    for number, epoch in enumerate((2, 5, 3), start=1):
        batches = list(outputs.epoch(epoch))
        assert torch.equal(outputs.labels(epoch), torch.cat([batch.labels for batch in batches]))
        rows = torch.cat([batch.inputs.logits for batch in batches])
        for view, expected in logits.items():  # an image may be augmented in the same way in two views
            is_found = (expected[None] - rows[:, None]).abs().amax(dim=(2, 3)).amin(dim=1) < 1e-4
            assert is_found.all() == (view == (3 if epoch == 3 else 2))
        assert model.trunk.images == 40 * (number if cache_gib == 0 else (1, 1, 2)[number - 1])


def test_an_epoch_can_start_in_the_middle():
    _, _, outputs = frozen_outputs(1.0)
    expected, batches = list(outputs.epoch(2))[3:], list(outputs.epoch(2, 3))
    assert len(batches) == len(expected) == 4
    for batch, same in zip(batches, expected, strict=True):
        assert torch.equal(batch.inputs.logits, same.inputs.logits)
        assert torch.equal(batch.labels, same.labels)


def test_a_router_is_the_same_with_and_without_a_cache():
    """Bit for bit."""
    routers = []
    for cache_gib in (1.0, 0.0):
        model, _, outputs = frozen_outputs(cache_gib)
        torch.manual_seed(1)
        router = create_router(model)
        train(router, outputs, 3)
        routers.append(router.state_dict())
    assert are_equal(*routers)


def test_training_a_router_lowers_its_loss():
    model, _, outputs = frozen_outputs(1.0, 40)
    losses = [record["loss"] for record in train(create_router(model), outputs, 30)]
    assert np.mean(losses[-5:]) < 0.8 * losses[0]
