"""Samplers: how often each class and each image comes up."""

import pytest
import torch

from longtail.data.sampling import class_balanced, class_draws, class_probabilities, progressively_balanced
from longtail.errors import InputError
from longtail.seeds import generator

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
