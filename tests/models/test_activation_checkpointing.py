import copy
import pickle
from typing import Any

import pytest
import torch
from helpers.networks import options
from helpers.saved_tensors import saved_bytes
from torch import nn

from longtail.losses import RIDELoss
from longtail.models.activation_checkpointing import checkpoint_activations
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.utils.errors import InputError

CLASSES = 5

# Name -> (side of the images, options, building blocks in the trunk and three branches).
NETWORKS: dict[str, tuple[int, dict[str, Any], int]] = {
    "resnet20": (32, {}, 3 + 3 * 6),
    "resnet10": (64, {}, 2 + 3 * 2),
    "resnet50": (64, {"drop_path_rate": 0.2}, 7 + 3 * 9),
    "regnety_002": (64, {}, 2 + 3 * 11),  # stages that are no nn.Sequential
    "convnext_atto": (64, {"drop_path_rate": 0.2}, 4 + 3 * 8),
    "efficientnet_b0": (64, {"drop_path_rate": 0.2, "drop_rate": 0.2}, 5 + 3 * 11),
    "densenet121": (64, {}, 18 + 3 * 40),  # blocks that take a list, which grows
    "swin_tiny_patch4_window7_224": (112, {"drop_path_rate": 0.2}, 2 + 3 * 3),
    "vit_tiny_patch16_224": (64, {"drop_path_rate": 0.2, "proj_drop_rate": 0.1}, 3 + 3),
    "eva02_tiny_patch14_224": (70, {"drop_path_rate": 0.2}, 3 + 3),  # blocks that take a keyword argument
    "dla46_c": (64, {}, 3),  # no blocks: whole branches
}


def build(name: str) -> tuple[MultiExpert, torch.Tensor]:
    """A model of three experts in training mode, and images."""
    size, own, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = create_model(name, CLASSES, 3, width="full", **options(name, size), **own)
    return model.train(), torch.randn(2, 3, size, size)


def checkpointed(model: MultiExpert) -> MultiExpert:
    other = copy.deepcopy(model)
    checkpoint_activations(other)
    return other


def loss_of(model: MultiExpert, images: torch.Tensor) -> torch.Tensor:
    criterion = RIDELoss([50, 20, 10, 5, 2])
    return criterion(model(images).logits, torch.arange(len(images)) % CLASSES, 0)


def step(model: MultiExpert, images: torch.Tensor) -> dict[str, torch.Tensor | None]:
    """Everything that one training step yields: the loss, the gradients, the buffers, and the random state after it."""
    torch.manual_seed(1)
    loss = loss_of(model, images)
    loss.backward()
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": loss.detach(), "next": torch.rand(1)} | gradients | dict(model.named_buffers())


def assert_same(one: dict[str, torch.Tensor | None], other: dict[str, torch.Tensor | None]) -> None:
    assert one.keys() == other.keys()
    different = [name for name in one if not _equal(one[name], other[name])]
    assert not different


def _equal(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def count_calls(module: nn.Module) -> list[int]:
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    module.register_forward_hook(count)
    return calls


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_is_the_same_to_the_bit(name):
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
    assert_same(step(model, images), step(other, images))  # gradients and statistics go on from there
    with torch.no_grad():
        assert torch.equal(model.eval()(images).logits, other.eval()(images).logits)
    assert all([5] in calls for calls in inside)


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("resnet20", 0.35),
        ("resnet50", 0.35),
        ("convnext_atto", 0.35),
        ("densenet121", 0.5),
        ("efficientnet_b0", 0.35),
        ("swin_tiny_patch4_window7_224", 0.35),
        ("vit_tiny_patch16_224", 0.35),
        ("eva02_tiny_patch14_224", 0.35),
    ],
)
def test_less_is_kept_for_backward(name, most):
    model, images = build(name)
    totals = []
    for one in (model, checkpointed(model)):
        with saved_bytes(one) as saved:
            loss = loss_of(one, images)
        totals.append(saved.total)
        del loss
    assert totals[1] < most * totals[0]


def test_nothing_is_recomputed_where_nothing_is_kept():
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


def test_twice_is_once():
    model, images = build("resnet10")
    other = checkpointed(model)
    checkpoint_activations(other)
    assert_same(step(model, images), step(other, images))


class Failing(nn.Module):
    """A block that fails when it is recomputed."""

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


def test_buffers_survive_an_error():
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


def test_inputs_changed_in_place_are_refused():
    model = Overwritten(nn.Sequential(Failing()))
    checkpoint_activations(model)
    loss = model(torch.randn(8, 3)).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_model_without_blocks_is_refused():
    with pytest.raises(InputError, match="Linear cannot be checkpointed"):
        checkpoint_activations(nn.Linear(3, 3))
