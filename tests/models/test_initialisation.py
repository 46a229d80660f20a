"""Networks that are built to be filled at once, whatever their memory held before."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import create_model


class UsedMemory(TorchFunctionMode):
    """New tensors hold what others left there: numbers out of the bounds of every distribution."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if func in (torch.empty, torch.empty_like) and made.is_floating_point() and not made.is_meta:
            made.fill_(100)
        return made


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "regnety_002", "resnet32"])
def test_building_ends(name, head):
    with UsedMemory(), skip_init():
        model = create_model(name=name, num_classes=3, num_experts=2, width="full", head=head)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


# Torch draws the first from a normal distribution and the second from a uniform one, until all are within bounds.
@pytest.mark.parametrize("deviation", [0.02, 20.0])
def test_truncated_distributions_end(deviation):
    with UsedMemory(), skip_init():
        weight = torch.empty(64, 64)
        assert (weight == 100).all()
        nn.init.trunc_normal_(weight, std=deviation)
    assert not weight.any()


def test_nothing_is_drawn():
    state = torch.random.get_rng_state()
    with skip_init():
        create_model(name="resnet32", num_classes=3, num_experts=2)
    assert torch.equal(torch.random.get_rng_state(), state)
