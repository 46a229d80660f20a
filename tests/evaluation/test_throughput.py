"""Measured speed: what runs, how often, and in which mode."""

import dataclasses
import json
import time

import pytest
import torch
from helpers.loaders import images_and_labels, loader, small_split
from torch import nn

from longtail.data.views import ViewsLoader
from longtail.evaluation import evaluator
from longtail.evaluation.throughput import images_per_second
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.models.router import Router


class Slow(nn.Module):
    """A branch that takes some milliseconds and records the sizes of its batches."""

    def __init__(self, seconds=0.005):
        super().__init__()
        self.seconds, self.batch_sizes = seconds, []

    def forward(self, images):
        assert torch.is_inference_mode_enabled()
        assert not self.training
        self.batch_sizes.append(len(images))
        time.sleep(self.seconds)
        return images.flatten(1)


def slow_model(num_experts=3, has_router=True, threshold=0.5):
    heads = [nn.Linear(6, 4) for _ in range(num_experts)]
    router = Router(num_experts, 6, 4, threshold=threshold) if has_router else None
    return MultiExpert(nn.Identity(), [Slow() for _ in heads], heads, router=router)


@pytest.mark.parametrize("training", [True, False])
def test_speed_depends_on_the_number_of_experts(training):
    model = slow_model(threshold=1.0).train(training)
    images = torch.randn(22, 3, 1, 2)
    speed = images_per_second(model, images, 8, seconds=0.2)
    first, second, third = speed.prefixes
    assert first > 1.2 * second > 1.2 * third
    assert first < 8 / 0.005
    assert speed.routed > 1.2 * second  # with this threshold only the first expert runs
    assert set(model.branches[0].batch_sizes) == {8, 6}  # the last batch is smaller
    assert model.training == model.branches[0].training == training
    assert speed.batch_size == 8
    assert speed.rounds > 2


def test_an_image_counts_once_whatever_its_views():
    model = slow_model(threshold=1.0)
    speed = images_per_second(model, torch.randn(5 * 7, 3, 1, 2), 16, seconds=0.1, num_views=5)
    assert set(model.branches[0].batch_sizes) == {15, 5}  # 3 images, and the last one, with 5 views each
    assert speed.prefixes[0] < 3 / 0.005
    assert speed.routed < 3 / 0.005


class Watched:
    """A loader that knows which batches were read."""

    def __init__(self, images):
        self.read, self._images = [], images

    def __getattr__(self, name):
        return getattr(self._images, name)

    def __len__(self):
        return len(self._images)

    def epoch(self, epoch, first=0):
        self.read += range(first, len(self))
        yield from self._images.epoch(epoch, first)
        self.read.append("end")


@pytest.mark.parametrize("views", ["one", "flip"])
def test_nothing_is_decoded_while_speed_is_measured(views, monkeypatch):
    """Processes decode the next batches while one is used. Therefore the images are those of the last batches."""
    monkeypatch.setattr(evaluator, "SPEED_IMAGES", 16)
    watched = Watched(loader(small_split(30), 4))
    wanted = 16 if views == "one" else 8
    pixels = images_and_labels(watched.epoch(0))[0][-wanted:]
    watched.read.clear()
    images = evaluator._some_images(watched if views == "one" else ViewsLoader(watched, views, 8))
    assert torch.equal(images, pixels if views == "one" else torch.cat([pixels, pixels.flip(3)]))
    assert watched.read == [*range(3 if views == "one" else 5, 8), "end"]


def test_time_limit():
    model = slow_model()
    images_per_second(model, torch.randn(1000, 3, 1, 2), 10, seconds=0.1)
    # A call takes at least 5 ms. 4 variants in 0.4 s make at most 80 calls, and a warm-up and a last round; one pass
    # over all batches would make 400.
    assert len(model.branches[0].batch_sizes) < 150


def test_at_least_one_batch_and_no_router():
    model = slow_model(num_experts=2, has_router=False)
    speed = images_per_second(model, torch.randn(3, 3, 1, 2), 8, seconds=0)
    assert speed.rounds == 1
    assert speed.routed is None
    assert len(speed.prefixes) == 2
    assert json.loads(json.dumps(dataclasses.asdict(speed))) == dataclasses.asdict(speed)
    assert set(model.branches[0].batch_sizes) == {3}


def test_a_real_network():
    model = create_model("resnet20", 10, 2, router={})
    speed = images_per_second(model, torch.randn(5, 3, 32, 32), 4, seconds=0.05)
    assert all(rate > 0 for rate in (*speed.prefixes, speed.routed))


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator")
def test_on_an_accelerator():
    device = torch.accelerator.current_accelerator()
    model = create_model("resnet20", 10, 3, router={}).to(device)
    speed = images_per_second(model, torch.randn(512, 3, 32, 32, device=device), 128, seconds=0.2)
    assert speed.prefixes[0] > speed.prefixes[-1]
