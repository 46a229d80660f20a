"""Samplers: how often each class and each image is drawn, in any DataLoader and in the loaders of longtail."""

from typing import get_args

import numpy as np
import pytest
import torch
from helpers.loaders import CPU, NORMALISE, loader
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from longtail.config.recipes import load_recipe
from longtail.data.build import LoaderFactory, load_data, preprocessing
from longtail.data.image_loader import ImageLoader
from longtail.data.loaders import EpochOrder
from longtail.data.samplers import LongTailSampler, class_probabilities, draw_positions
from longtail.data.splits import ImageSplit
from longtail.data.transforms import ImageAugmentation, train_transform
from longtail.runtime.device import Runtime
from longtail.runtime.seed import generator
from longtail.runtime.shard import SINGLE_SHARD, Shard
from longtail.utils.choices import Sampling
from longtail.utils.errors import InputError

COUNTS = torch.tensor([50, 5, 0, 12, 1])
LABELS = torch.repeat_interleave(torch.arange(5), COUNTS)[torch.randperm(68, generator=generator(5))]
QUARTER = LongTailSampler(LABELS, "progressive", epochs=5).probabilities(2)
PROBABILITIES = {
    "instance": class_probabilities(COUNTS, 1),
    "square-root": class_probabilities(COUNTS, 0.5),
    "class-balanced": class_probabilities(COUNTS, 0),
    "progressive, at 1/4": QUARTER,
    "inverse": class_probabilities(COUNTS, -1),
}
SAMPLINGS = get_args(Sampling)


def chi_square(positions, probabilities):
    """Test statistic over the four classes with images. It exceeds 16.3 with a probability of 0.001."""
    drawn = torch.bincount(LABELS[positions], minlength=5)
    assert drawn[probabilities == 0].sum() == 0
    drawn, expected = drawn[probabilities > 0], probabilities[probabilities > 0] * len(positions)
    return float(((drawn - expected) ** 2 / expected).sum())


def assert_only_fits(positions, name):
    """The draws have the probabilities of this name, and none of the others."""
    for other, probabilities in PROBABILITIES.items():
        assert (chi_square(positions, probabilities) < 16.3) == (other == name), other


def test_probabilities_are_those_of_the_paper():
    counts = COUNTS.tolist()
    for power in (1, 0.5, 0, -1):
        weights = [n**power if n else 0 for n in counts]
        expected = [weight / sum(weights) for weight in weights]
        assert class_probabilities(COUNTS, power).tolist() == pytest.approx(expected, rel=1e-12)
        assert torch.equal(class_probabilities(counts, power), class_probabilities(COUNTS, power))
    assert QUARTER.tolist() == pytest.approx([0.75 * n / 68 + 0.25 * (n > 0) / 4 for n in counts], rel=1e-12)


@pytest.mark.parametrize("epochs", [1, 2, 10])
def test_progressive_sampling_goes_from_instance_to_class_balanced(epochs):
    sampler = LongTailSampler(LABELS, "progressive", epochs=epochs)
    if epochs > 1:
        assert torch.equal(sampler.probabilities(epochs), PROBABILITIES["class-balanced"])
        assert torch.equal(sampler.probabilities(epochs + 1), PROBABILITIES["class-balanced"])
    for epoch in (0, 1):
        assert torch.equal(sampler.probabilities(epoch), PROBABILITIES["instance"])


@pytest.mark.parametrize("name", PROBABILITIES)
def test_classes_are_drawn_by_their_probabilities(name):
    assert_only_fits(draw_positions(LABELS, PROBABILITIES[name], 6000, generator(1)), name)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_images_of_a_class_take_turns(name):
    drawn = draw_positions(LABELS, PROBABILITIES[name], 6000, generator(2))
    times = torch.bincount(drawn, minlength=len(LABELS))
    for label in LABELS.unique():
        assert times[label == LABELS].max() - times[label == LABELS].min() <= 1
    # Each round has a new order.
    turns = drawn[LABELS[drawn] == 3]
    assert not torch.equal(turns[:12], turns[12:24])
    assert torch.equal(turns[:12].sort().values, turns[12:24].sort().values)


@pytest.mark.parametrize("name", PROBABILITIES)
def test_draws_depend_on_the_generator_alone(name):
    first, same, other = (draw_positions(LABELS, PROBABILITIES[name], 300, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def slow_class_balanced(labels, num_samples, generator):
    """The draws of published routers, one class after the other. They must not change."""
    present = torch.unique(labels)
    drawn = present[torch.randint(len(present), (num_samples,), generator=generator)]
    positions = torch.empty(num_samples, dtype=torch.int64)
    for label in present:
        images = (labels == label).nonzero().squeeze(1)
        draws = (drawn == label).nonzero().squeeze(1)
        taken = []
        while len(taken) < len(draws):
            taken += images[torch.randperm(len(images), generator=generator)].tolist()
        positions[draws] = torch.tensor(taken[: len(draws)], dtype=torch.int64)
    return positions


@pytest.mark.parametrize("num_samples", [0, 1, 7, 68, 2000])
def test_class_balanced_draws_are_the_published_ones(num_samples):
    for seed in range(5):
        sampler = LongTailSampler(LABELS, "class-balanced", num_samples=num_samples)
        expected = slow_class_balanced(LABELS, num_samples, generator(seed))
        assert torch.equal(sampler.positions(1, generator(seed)), expected)


# ---- in any DataLoader ----


@pytest.mark.parametrize("sampling", ["instance", "square-root", "class-balanced"])
def test_any_data_loader_takes_a_sampler(sampling):
    sampler = LongTailSampler(LABELS.tolist(), sampling, num_samples=6000, seed=1)
    batches = DataLoader(TensorDataset(torch.arange(68)), batch_size=1000, sampler=sampler)
    assert (len(sampler), len(batches)) == (6000, 6)
    positions = torch.cat([batch for (batch,) in batches])
    assert_only_fits(positions, sampling)
    assert torch.equal(positions, sampler.positions(1))


def test_each_iteration_is_the_next_epoch():
    sampler = LongTailSampler(LABELS.numpy(), "progressive", epochs=3, seed=4)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs == [sampler.positions(epoch).tolist() for epoch in (1, 2, 3)]
    assert [len(set(epoch)) > 1 for epoch in epochs] == [True] * 3
    assert epochs[0] != epochs[1]
    sampler.set_epoch(2)
    assert [list(sampler), list(sampler)] == epochs[1:]


# ---- in the loaders of longtail ----

TWENTY = torch.tensor([0] * 14 + [1] * 4 + [3] * 2)


def numbered_images(tmp_path, files, sampling, shard=SINGLE_SHARD, padding=0):
    """A loader of twenty images. Each has a uniform colour, which is its position."""
    sampler = LongTailSampler(TWENTY, sampling, epochs=10)
    pixels = np.tile(np.arange(20, dtype=np.uint8)[:, None, None, None], (1, 6, 6, 3))
    split = ImageSplit(TWENTY.numpy(), pixels)
    if not files:
        return loader(split, 5, seed=2, shuffle=True, sampler=sampler, shard=shard, padding=padding)
    paths = [tmp_path / f"{number}.png" for number in range(20)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    transform = train_transform(6, ImageAugmentation("padded" if padding else "none", padding), 6)
    order = EpochOrder(20, 5, 2, True, sampler, shard)
    split = ImageSplit(TWENTY.numpy(), paths=np.array(paths, dtype=object))
    return ImageLoader(split, transform, order, device=CPU, normalise=NORMALISE)


def read(loader, epoch, first=0):
    """All pixels (N, 3, 6, 6), from 0 to 255, and labels (N,)."""
    batches = [(batch.inputs, batch.own_labels) for batch in loader.epoch(epoch, first)]
    images, labels = map(torch.cat, zip(*batches, strict=True))
    return (images * NORMALISE.std + NORMALISE.mean).round(), labels


@pytest.mark.parametrize("files", [False, True], ids=["memory", "files"])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_loaders_yield_the_images_of_the_sampler(tmp_path, files, sampling):
    """An epoch can also start in the middle, and be shared by processes."""
    loader = numbered_images(tmp_path, files, sampling)
    sampler = LongTailSampler(TWENTY, sampling, epochs=10, seed=2)
    for epoch in (4, 1):
        images, labels = read(loader, epoch)
        positions = sampler.positions(epoch)
        assert images.mean(dim=(1, 2, 3)).tolist() == positions.tolist()
        assert torch.equal(labels, TWENTY[positions])
        assert torch.equal(loader.labels(epoch), labels)
        assert torch.equal(read(loader, epoch, 2)[0], images[10:])
        halves = [numbered_images(tmp_path, files, sampling, Shard(rank, 2)).epoch(epoch) for rank in (0, 1)]
        shared = [batch.inputs for both in zip(*halves, strict=True) for batch in both]
        assert torch.equal((torch.cat(shared) * NORMALISE.std + NORMALISE.mean).round(), images)


@pytest.mark.parametrize("files", [False, True], ids=["memory", "files"])
def test_repeated_images_are_augmented_differently(tmp_path, files):
    """Both images of the rarest class are drawn about three times each; 81 shifts are possible."""
    loader = numbered_images(tmp_path, files, "class-balanced", padding=4)
    images, labels = read(loader, 1)
    rare = images[labels == 3].flatten(1)
    assert len(rare) > 3
    assert len(rare.unique(dim=0)) > 2
    assert torch.equal(read(loader, 1)[0], images)


@pytest.mark.parametrize("sampling", ["shuffled", "class-balanced", "progressive"])
def test_settings_choose_the_sampler(sampling):
    config = load_recipe("digits-lt-ride", {"training.sampling": sampling, "seed": 4, "training.epochs": 3})
    dataset = load_data(config.data)
    form = preprocessing(config.data, config.model.backbone, dataset)
    factory = LoaderFactory(dataset, config.data, config.augmentation, form, Runtime(), config.seed)
    loader, all_images = factory.train(config.training), factory.shuffled(config.training.batch_size)
    labels = torch.from_numpy(dataset.train.labels)
    for epoch in (1, 3):
        assert torch.equal(all_images.labels(epoch).sort().values, labels.sort().values)
        if sampling == "shuffled":
            expected = all_images.labels(epoch)
        else:
            expected = labels[LongTailSampler(labels, sampling, epochs=3, seed=4).positions(epoch)]
        assert torch.equal(loader.labels(epoch), expected[: loader.num_images])


def test_unknown_sampling():
    with pytest.raises(InputError, match=r"sampling is .balanced.; .*class-balanced"):
        LongTailSampler([0, 1], "balanced")
