"""`skip_init`: construction without random numbers, whatever the memory contains."""

import pytest
import torch
from helpers.networks import slow_except
from torch import nn
from torch.overrides import TorchFunctionMode

from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import create_model

NETWORKS = ("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "regnety_002", "resnet32")


class UsedMemory(TorchFunctionMode):
    """Fills new tensors with 100, which is out of the bounds of every distribution of initial weights."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func in (torch.empty, torch.empty_like) and result.is_floating_point() and not result.is_meta:
            result.fill_(100)
        return result


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("name", slow_except(("vit_tiny_patch16_224", "regnety_002", "resnet32"), NETWORKS))
def test_construction_ends_with_finite_weights(name, head):
    with UsedMemory(), skip_init():
        model = create_model(name=name, num_classes=3, num_experts=2, width="full", head=head)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


# Torch draws from a normal distribution for the first and from a uniform one for the second.
@pytest.mark.parametrize("deviation", [0.02, 20.0])
def test_truncated_distributions_end(deviation):
    with UsedMemory(), skip_init():
        weight = torch.empty(64, 64)
        assert (weight == 100).all()
        nn.init.trunc_normal_(weight, std=deviation)
    assert not weight.any()


def test_no_random_numbers_are_drawn():
    state = torch.random.get_rng_state()
    with skip_init():
        create_model(name="resnet32", num_classes=3, num_experts=2)
    assert torch.equal(torch.random.get_rng_state(), state)
