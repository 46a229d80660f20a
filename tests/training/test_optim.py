"""Settings -> criterion, optimiser and learning rate."""

import numpy as np
import pytest
import torch
from helpers import golden
from helpers.loaders import Linear

from longtail.config.recipes import load_recipe
from longtail.losses import CrossEntropyLoss
from longtail.losses.build import build_criterion
from longtail.models.multi_expert import create_model
from longtail.training import optim
from longtail.training.tasks import TrainExperts


def criterion(recipe, changes=None):
    config = load_recipe(recipe, changes)
    return build_criterion(config.loss, [50, 20, 5], config.training.epochs, config.model.scale)


def test_criteria_follow_the_settings():
    ride = criterion("cifar100-lt-ride", {"training.epochs": 40, "loss.max_margin": 0.3, "model.scale": 20})
    assert (ride.reweight_after, ride.scale, ride.diversity_factor) == (32, 20, -0.45)
    assert ride.margins.max().item() == pytest.approx(0.3)
    plain = criterion("cifar100-lt-ce")
    assert plain.reweight_after is None
    assert type(plain) is CrossEntropyLoss


def test_optimisers_follow_the_settings():
    task = Linear(4, 2)
    sgd = optim.optimizer(load_recipe("cifar100-lt-ldam-drw").training, task)
    assert (sgd.defaults["momentum"], sgd.defaults["nesterov"], sgd.defaults["weight_decay"]) == (0.9, False, 2e-4)
    adamw = optim.optimizer(load_recipe("cifar100-lt-ce", {"training.optimizer": "adamw"}).training, task)
    assert isinstance(adamw, torch.optim.AdamW)


def test_learning_rates_follow_the_settings():
    def rates(changes, epochs):
        rate = optim.learning_rate(load_recipe("cifar100-lt-ride", changes).training)
        return [rate(epoch) for epoch in epochs]

    assert rates({}, (0, 4.9, 5, 159.9, 160, 179, 180)) == pytest.approx([0.02, 0.1, 0.1, 0.1, 0.001, 0.001, 0.00001])
    # With a fifth of the epochs every milestone comes after a fifth of the time.
    short = rates({"training.epochs": 40}, (0, 1, 31, 32, 36))
    assert short == pytest.approx([0.1, 0.1, 0.1, 0.001, 0.00001])
    assert rates({"training.schedule": "cosine"}, (100,)) == pytest.approx([0.05])


def test_the_learning_rate_of_the_router_is_the_original_one():
    rate = optim.epoch_cosine(load_recipe("digits-lt-ride", {"router.epochs": 5}).router)
    original = golden.arrays("schedules/ride_lr.npz")["ea_cosine/lr"]
    np.testing.assert_allclose([rate(epoch + 0.5) for epoch in range(5)], original[:5], rtol=1e-9)


def test_sgd_of_a_later_stage_trains_what_requires_gradients():
    task = Linear(4, 2)
    task.layer.bias.requires_grad_(False)
    settings = load_recipe("digits-lt-ride").router
    (group,) = optim.sgd(settings, task, nesterov=True).param_groups
    assert group["params"] == [task.layer.weight]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, settings.weight_decay)


def test_parameter_groups_of_swin():
    """No decay on vectors and position tables; the trunk has its own rate."""
    changes = {"training.trunk_learning_rate": 0.1, "training.batch_size": 512}
    config = load_recipe("imagenet-lt-swin-tiny-ride", changes)
    with torch.device("meta"):
        model = create_model(config.model.backbone, 10, 2, depths=(1, 1, 1, 1))
    optimizer = optim.optimizer(config.training, TrainExperts(model, CrossEntropyLoss([1] * 10)))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.999)
    group_of = {p: group for group in optimizer.param_groups for p in group["params"]}
    tables = 0
    for name, parameter in model.named_parameters():
        is_table = "relative_position_bias_table" in name
        tables += is_table
        expected = 0 if is_table or parameter.ndim == 1 else 0.2
        assert group_of.pop(parameter)["weight_decay"] == expected, name
    assert tables == 1 + 1 + 2 * (1 + 1)
    assert not group_of
    assert {group["lr_scale"] for group in optimizer.param_groups} == {0.1, 1.0}
    scaled = {p for group in optimizer.param_groups if group["lr_scale"] == 0.1 for p in group["params"]}
    assert scaled == set(model.trunk.parameters())
