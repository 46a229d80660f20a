"""Activation checkpointing: the same training step, bit for bit, with less memory."""

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers.networks import options, slow_except
from helpers.saved_tensors import saved_bytes
from torch import nn

from longtail.losses import RIDELoss
from longtail.models.activation_checkpointing import checkpoint_activations
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.utils.errors import InputError

CLASSES = 5

# Name -> image size, options, and blocks in the trunk and three branches
NETWORKS: dict[str, tuple[int, dict[str, Any], int]] = {
    "resnet20": (32, {}, 3 + 3 * 6),
    "resnet10": (64, {}, 2 + 3 * 2),
    "resnet50": (64, {"drop_path_rate": 0.2}, 7 + 3 * 9),
    "regnety_002": (64, {}, 2 + 3 * 11),  # stages that are not nn.Sequential
    "convnext_atto": (64, {"drop_path_rate": 0.2}, 4 + 3 * 8),
    "efficientnet_b0": (64, {"drop_path_rate": 0.2, "drop_rate": 0.2}, 5 + 3 * 11),
    "densenet121": (64, {}, 18 + 3 * 40),  # the argument of a block is a list, which grows
    "swin_tiny_patch4_window7_224": (112, {"drop_path_rate": 0.2}, 2 + 3 * 3),
    "vit_tiny_patch16_224": (64, {"drop_path_rate": 0.2, "proj_drop_rate": 0.1}, 3 + 3),
    "eva02_tiny_patch14_224": (70, {"drop_path_rate": 0.2}, 3 + 3),  # blocks have a keyword argument
    "dla46_c": (64, {}, 3),  # no blocks, so each branch is one
}


def build(name: str) -> tuple[MultiExpert, torch.Tensor]:
    """A model of three experts in training mode, and images."""
    size, changes, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = create_model(name, CLASSES, 3, width="full", **options(name, size), **changes)
    return model.train(), torch.randn(2, 3, size, size)


def checkpointed(model: MultiExpert) -> MultiExpert:
    other = copy.deepcopy(model)
    checkpoint_activations(other)
    return other


def loss_of(model: MultiExpert, images: torch.Tensor) -> torch.Tensor:
    criterion = RIDELoss([50, 20, 10, 5, 2])
    return criterion(model(images).logits, torch.arange(len(images)) % CLASSES, 0)


def step(model: MultiExpert, images: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Returns loss, gradients and buffers of one training step, and a random number drawn after it."""
    torch.manual_seed(1)
    loss = loss_of(model, images)
    loss.backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": loss.detach(), "next": torch.rand(1)} | gradients | dict(model.named_buffers())


def assert_same(first: dict[str, torch.Tensor | None], second: dict[str, torch.Tensor | None]) -> None:
    assert first.keys() == second.keys()
    assert not [name for name in first if not _equal(first[name], second[name])]


def _equal(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    return first is second if first is None or second is None else torch.equal(first, second)


def count_calls(module: nn.Module) -> list[int]:
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    module.register_forward_hook(count)
    return calls


@pytest.mark.parametrize("name", slow_except(("resnet20", "resnet10", "vit_tiny_patch16_224", "dla46_c"), NETWORKS))
def test_a_training_step_is_bit_identical(name):
    model, images = build(name)
    other = copy.deepcopy(model)
    assert checkpoint_activations(other) == NETWORKS[name][2]
    assert list(other.state_dict()) == list(model.state_dict())
    blocks = [module for module in other.modules() if "forward" in vars(module) and module is not other.trunk]
    assert len(blocks) == NETWORKS[name][2]
    outside = [count_calls(block) for block in blocks]
    inside = [[count_calls(child) for child in block.children()] for block in blocks]
    assert_same(step(model, images), step(other, images))
    assert outside == [[1]] * len(blocks)
    assert all([2] in calls for calls in inside)
    assert_same(step(model, images), step(other, images))  # gradients and statistics accumulate
    with torch.no_grad():
        assert torch.equal(model.eval()(images).logits, other.eval()(images).logits)
    assert all([5] in calls for calls in inside)


LESS_MEMORY = ("resnet20", "resnet50", "convnext_atto", "densenet121", "efficientnet_b0", "vit_tiny_patch16_224")


@pytest.mark.parametrize("name", slow_except(("resnet20", "vit_tiny_patch16_224"), LESS_MEMORY))
def test_less_memory_is_kept_for_backward(name):
    model, images = build(name)
    totals = []
    for variant in (model, checkpointed(model)):
        with saved_bytes(variant) as saved:
            loss = loss_of(variant, images)
        totals.append(saved.total)
        del loss
    assert totals[1] < (0.5 if name == "densenet121" else 0.35) * totals[0]


def test_nothing_is_recomputed_without_gradients_or_in_eval_mode():
    model, images = build("resnet10")
    model = checkpointed(model)
    calls = count_calls(model.trunk.layer1[0].conv1)
    model.eval()(images).logits.sum().backward()
    with torch.no_grad():
        model.train()(images)
    assert calls == [2]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_checkpointed_and_independent(duplicate):
    model, images = build("resnet10")
    model = checkpointed(model)
    other = duplicate(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    calls, old_calls = (count_calls(each.trunk.layer1[0].conv1) for each in (other, model))
    loss_of(other, images).backward()
    assert (calls, old_calls) == ([2], [0])
    assert all(parameter.grad is None for parameter in model.parameters())
    assert other.trunk.layer1[0].conv1.weight.grad.abs().sum() > 0


def test_a_second_call_changes_nothing():
    model, images = build("resnet10")
    other = checkpointed(model)
    checkpoint_activations(other)
    assert_same(step(model, images), step(other, images))


class Failing(nn.Module):
    """A block that fails when it runs again."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = self.norm(self.first(x))
        if self.calls == 2:
            raise RuntimeError("out of memory")
        return self.second(x)


def test_buffers_are_restored_after_an_error():
    model = nn.Sequential(Failing())
    checkpoint_activations(model)
    loss = model(torch.randn(8, 3)).sum()
    before = {name: (buffer, buffer.clone()) for name, buffer in model.named_buffers()}
    with pytest.raises(RuntimeError, match="out of memory"):
        loss.backward()
    for name, buffer in model.named_buffers():
        assert buffer is before[name][0]
        assert torch.equal(buffer, before[name][1])


class Overwritten(nn.Sequential):
    """Changes the input of its block after the block has used it."""

    def forward(self, x):
        x = x * 2
        y = self[0](x)
        x += 1
        return y


def test_inputs_changed_in_place_are_detected():
    model = Overwritten(nn.Sequential(Failing()))
    checkpoint_activations(model)
    loss = model(torch.randn(8, 3)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_model_without_blocks():
    with pytest.raises(InputError, match="Linear cannot be checkpointed"):
        checkpoint_activations(nn.Linear(3, 3))
