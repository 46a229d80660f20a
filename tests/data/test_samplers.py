"""Samplers: how often each class and each image comes up."""

from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image

from longtail.config.recipes import load_recipe
from longtail.data import build as data_build
from longtail.data.image_loader import FileLoader
from longtail.data.loaders import MemoryLoader, Normalise
from longtail.data.samplers import (
    Sampling,
    class_balanced,
    class_draws,
    class_probabilities,
    progressively_balanced,
    sampler,
)
from longtail.data.splits import ImageSplit, as_paths
from longtail.data.transforms import train_transform
from longtail.runtime.device import Runtime
from longtail.runtime.seed import generator
from longtail.runtime.shard import Shard
from longtail.utils.errors import InputError

COUNTS = torch.tensor([50, 5, 0, 12, 1])
LABELS = torch.repeat_interleave(torch.arange(5), COUNTS)[torch.randperm(68, generator=generator(5))]
SAMPLERS = {
    "instance-balanced": class_probabilities(COUNTS, 1),
    "square-root": class_probabilities(COUNTS, 0.5),
    "class-balanced": class_probabilities(COUNTS, 0),
    "progressively balanced, at 1/4": progressively_balanced(COUNTS, 0.25),
    "rare classes first": class_probabilities(COUNTS, -1),
}


def chi_square(drawn: torch.Tensor, expected: torch.Tensor) -> float:
    """Over the four classes that have images: 16.3 at a chance of 0.001, with 3 degrees of freedom."""
    seen = torch.bincount(LABELS[drawn], minlength=5)
    assert seen[expected == 0].sum() == 0
    seen, expected = seen[expected > 0], expected[expected > 0] * len(drawn)
    return float(((seen - expected) ** 2 / expected).sum())


def test_probabilities_are_those_of_the_paper():
    numbers = [50, 5, 0, 12, 1]
    for power in (1, 0.5, 0, -1):
        weights = [n**power if n else 0 for n in numbers]
        slow = [weight / sum(weights) for weight in weights]
        assert class_probabilities(COUNTS, power).tolist() == pytest.approx(slow, rel=1e-12)
        assert torch.equal(class_probabilities(numbers, power), class_probabilities(COUNTS, power))
    slow = [0.75 * n / 68 + 0.25 * (n > 0) / 4 for n in numbers]
    assert progressively_balanced(COUNTS, 0.25).tolist() == pytest.approx(slow, rel=1e-12)
    assert torch.equal(progressively_balanced(COUNTS, 0), class_probabilities(COUNTS, 1))
    assert torch.equal(progressively_balanced(COUNTS, 1), class_probabilities(COUNTS, 0))


@pytest.mark.parametrize("name", SAMPLERS)
def test_classes_are_as_likely_as_they_should_be(name):
    drawn = class_draws(LABELS, SAMPLERS[name], 6000, generator(1))
    assert chi_square(drawn, SAMPLERS[name]) < 16.3
    for other in SAMPLERS:
        if other != name:
            assert chi_square(drawn, SAMPLERS[other]) > 16.3, f"{name} cannot be told from {other}"


@pytest.mark.parametrize("name", SAMPLERS)
def test_images_of_a_class_take_turns(name):
    drawn = class_draws(LABELS, SAMPLERS[name], 6000, generator(2))
    times = torch.bincount(drawn, minlength=len(LABELS))
    for label in range(5):
        own = times[label == LABELS]
        assert not len(own) or own.max() - own.min() <= 1
    # Each round has an order of its own.
    turns = drawn[LABELS[drawn] == 3]
    assert not torch.equal(turns[:12], turns[12:24])
    assert torch.equal(turns[:12].sort().values, turns[12:24].sort().values)


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_depend_on_the_generator_alone(name):
    drawn = [class_draws(LABELS, SAMPLERS[name], 300, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def slow_class_balanced(labels: torch.Tensor, num_draws: int, generator: torch.Generator) -> torch.Tensor:
    """The draws behind published routers, one class after the other; they are not to change."""
    present = torch.unique(labels)
    drawn = present[torch.randint(len(present), (num_draws,), generator=generator)]
    positions = torch.empty(num_draws, dtype=torch.int64)
    for label in present:
        own = (labels == label).nonzero().squeeze(1)
        places = (drawn == label).nonzero().squeeze(1)
        taken = []
        while len(taken) < len(places):
            taken += own[torch.randperm(len(own), generator=generator)].tolist()
        positions[places] = torch.tensor(taken[: len(places)], dtype=torch.int64)
    return positions


@pytest.mark.parametrize("num_draws", [0, 1, 7, 68, 2000])
def test_class_balanced_draws_are_the_same_as_ever(num_draws):
    for seed in range(5):
        drawn = class_balanced(LABELS, num_draws, generator(seed))
        assert torch.equal(drawn, slow_class_balanced(LABELS, num_draws, generator(seed)))
        balanced = class_draws(LABELS, class_probabilities(COUNTS, 0), num_draws, generator(seed))
        assert torch.equal(drawn, balanced)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="0 without images"):
        class_draws(LABELS, torch.ones(5), 10, generator(1))
    with pytest.raises(InputError, match="one for each label"):
        class_draws(LABELS, torch.tensor([1.0, 1.0, 0.0]), 10, generator(1))
    with pytest.raises(InputError, match=r"progress 1\.5: .* from 0 to 1"):
        progressively_balanced(COUNTS, 1.5)


# ---- in training ----


def epoch_order(sampling: Sampling, epochs: int, numbers: range) -> torch.Tensor:
    draws = sampler(sampling, LABELS, epochs)
    return torch.cat([draws(epoch, generator(3, epoch)) for epoch in numbers])


@pytest.mark.parametrize("sampling", get_args(Sampling))
def test_an_epoch_has_as_many_draws_as_images(sampling):
    draws = sampler(sampling, LABELS, 10)
    for epoch in (1, 10):
        assert draws(epoch, generator(1)).shape == LABELS.shape


@pytest.mark.parametrize(
    ("sampling", "name"),
    [("instance", "instance-balanced"), ("square-root", "square-root"), ("class-balanced", "class-balanced")],
)
def test_samplings_have_the_chances_of_their_names(sampling, name):
    positions = epoch_order(sampling, 100, range(1, 101))
    assert chi_square(positions, SAMPLERS[name]) < 16.3
    for other in SAMPLERS:
        assert other == name or chi_square(positions, SAMPLERS[other]) > 16.3


def test_progressive_sampling_goes_from_instance_to_class_balanced():
    """Over a long training the first epochs are nearly instance-balanced, those at a quarter have a quarter of each."""
    for numbers, name in (
        (range(1, 101), "instance-balanced"),
        (range(24_950, 25_050), "progressively balanced, at 1/4"),
        (range(99_900, 100_001), "class-balanced"),
    ):
        positions = epoch_order("progressive", 100_000, numbers)
        assert chi_square(positions, SAMPLERS[name]) < 16.3
        for other in SAMPLERS:
            assert other == name or chi_square(positions, SAMPLERS[other]) > 16.3
    for epoch in (1, 2):  # and past the end of a training of one epoch
        assert epoch_order("progressive", 1, range(epoch, epoch + 1)).shape == LABELS.shape


def images(tmp_path, files: bool, sampling: Sampling, shard: Shard = Shard(), **augmentation):  # noqa: B008
    """Twenty images that are of one colour each, which is their position."""
    labels = np.array([0] * 14 + [1] * 4 + [3] * 2)
    pixels = np.tile(np.arange(20, dtype=np.uint8)[:, None, None, None], (1, 6, 6, 3))
    cpu = torch.device("cpu")
    options = {"device": cpu, "normalise": Normalise([0.0] * 3, [1 / 255] * 3, cpu), "seed": 2, "shuffle": True}
    options |= {"sampler": sampler(sampling, torch.from_numpy(labels), 10), "shard": shard}
    if not files:
        return MemoryLoader(ImageSplit(labels, pixels), 5, **options, **augmentation)
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    padding = augmentation.get("padding", 0)
    transform = train_transform(6, "padded" if padding else "none", padding, (1.0, 1.0), False, 0.0, (0.0,) * 4, 6)
    return FileLoader(ImageSplit(labels, paths=as_paths(paths)), transform, 5, **options)


def seen(loader, epoch: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    pictures, labels = zip(*loader.epoch(epoch, first), strict=True)
    return torch.cat(pictures), torch.cat(labels)


@pytest.mark.parametrize("files", [False, True], ids=["memory", "files"])
@pytest.mark.parametrize("sampling", get_args(Sampling))
def test_only_the_order_of_a_loader_changes(tmp_path, files, sampling):
    """Images keep their labels, which are known beforehand; epochs can be begun in the middle and shared."""
    loader = images(tmp_path, files, sampling)
    labels = torch.tensor([0] * 14 + [1] * 4 + [3] * 2)
    draws = sampler(sampling, labels, 10)
    for epoch in (4, 1):
        pictures, targets = seen(loader, epoch)
        assert pictures.mean(dim=(1, 2, 3)).round().tolist() == draws(epoch, generator(2, epoch)).tolist()
        assert torch.equal(targets, labels[draws(epoch, generator(2, epoch))])
        assert torch.equal(loader.labels(epoch), targets)
        assert torch.equal(seen(loader, epoch, 2)[0], pictures[10:])
        halves = [images(tmp_path, files, sampling, Shard(rank, 2)) for rank in (0, 1)]
        parts = [images for both in zip(*(half.epoch(epoch) for half in halves), strict=True) for images, _ in both]
        assert torch.equal(torch.cat(parts), pictures)
    assert not torch.equal(loader.labels(1), loader.labels(2))


@pytest.mark.parametrize("files", [False, True], ids=["memory", "files"])
def test_an_image_that_comes_up_again_looks_different(tmp_path, files):
    """Both images of the rarest class come up some three times each; 81 shifts are possible."""
    loader = images(tmp_path, files, "class-balanced", padding=4)
    pictures, labels = seen(loader, 1)
    rare = pictures[labels == 3].flatten(1)
    assert len(rare) > 3
    assert len(rare.unique(dim=0)) > 2
    assert torch.equal(seen(loader, 1)[0], pictures)


def test_the_setting_chooses_the_sampler():
    def loader(sampling):
        config = load_recipe("digits-lt-ride", {"training.sampling": sampling, "seed": 4, "training.epochs": 3})
        dataset = data_build.load_data(config)
        return (
            data_build.train_loader(config, dataset, Runtime()),
            data_build.shuffled_loader(config, dataset, Runtime()),
            dataset,
        )

    train, every, dataset = loader("class-balanced")
    labels = torch.from_numpy(dataset.train.labels)
    for epoch in (1, 3):
        assert torch.equal(train.labels(epoch), labels[class_balanced(labels, len(labels), generator(4, epoch))])
        # What follows the experts is made of all images.
        assert torch.equal(every.labels(epoch).sort().values, labels.sort().values)
    train, _, _ = loader("shuffled")
    assert torch.equal(train.labels(1), every.labels(1))
    last = loader("progressive")[0].labels(3)
    chances = progressively_balanced(labels.bincount(), 1)
    assert torch.equal(last, labels[class_draws(labels, chances, len(labels), generator(4, 3))])
    with pytest.raises(
        InputError, match=r"training\.sampling is 'random'; it must be one of shuffled, instance, square"
    ):
        load_recipe("digits-lt-ride", {"training.sampling": "random"})
