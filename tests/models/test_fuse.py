"""Fused batch norms: the same outputs, and no fusion where it would change them."""

import copy

import pytest
import torch
from helpers.networks import options, slow_except
from torch import nn

from longtail.models.fuse import fuse_batch_norms
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.models.split import Identity

# Name -> image size, and number of batch norms that remain; None: some, because they do not follow one convolution
NETWORKS = {
    "resnet32": (32, 0),
    "resnet10": (64, 0),
    "regnety_002": (64, 0),
    "efficientnet_b0": (64, 0),
    "repvgg_a0": (64, None),
    "densenet121": (64, None),
    "convnext_atto": (64, 0),
    "vit_tiny_patch16_224": (64, 0),
}
FAST = ("resnet32", "resnet10", "convnext_atto")


def batch_norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def randomised(model, seed=0):
    """Gives the channels of all batch norms different statistics and weights, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for norm in batch_norms(model):
        with torch.no_grad():
            for tensor, low, high in (
                (norm.running_mean, -0.3, 0.3),
                (norm.running_var, 0.3, 2.0),
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.3, 0.3),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model


@pytest.mark.parametrize("name", slow_except(FAST, NETWORKS))
def test_outputs_are_the_same(name):
    size, remaining = NETWORKS[name]
    torch.manual_seed(0)
    model = randomised(create_model(name, 7, 2, width="full", **({"image_size": size} | options(name, size))))
    before = copy.deepcopy(model.state_dict())
    fused = fuse_batch_norms(model, size)
    assert model.training
    assert not fused.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    images = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        expected, outputs = model.eval()(images), fused(images)
    for first, second in ((outputs.logits, expected.logits), (outputs.features, expected.features)):
        assert (first - second).abs().max() < 1e-5 * second.abs().max()
    if remaining is None:
        assert 0 < len(batch_norms(fused)) < len(batch_norms(model))
    else:
        assert len(batch_norms(fused)) == remaining


def test_routing_is_the_same():
    torch.manual_seed(0)
    model = randomised(create_model("resnet20", 10, 3, router={})).eval()
    images = torch.randn(64, 3, 32, 32)
    with torch.inference_mode():
        output = model(images)
        probabilities = model.router(output.logits, output.features).sigmoid()
        thresholds = probabilities.median(dim=0).values.tolist()
        expected, routed = model.route(images, thresholds), fuse_batch_norms(model, 32).route(images, thresholds)
    # At the threshold, rounding decides.
    clear = ((probabilities - torch.tensor(thresholds)).abs() > 1e-4).all(dim=1)
    assert clear.sum() > 50
    assert expected.experts_used.unique().tolist() == [1, 2, 3]
    assert torch.equal(routed.experts_used[clear], expected.experts_used[clear])
    assert torch.allclose(routed.logits[clear], expected.logits[clear], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_fuses_without_and_with_gradients(context):
    """Frozen parameters, and contexts without gradients, do not hide the operations."""
    model = create_model("resnet20", 3, 1).requires_grad_(False)
    with context():
        assert not batch_norms(fuse_batch_norms(model, 8))
    assert not any(parameter.requires_grad for parameter in model.parameters())


class Mixed(nn.Module):
    """Only the last of its convolutions can be fused: its weights and its output are used once, by one batch norm."""

    def __init__(self):
        super().__init__()
        self.used_twice, self.norm1 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.called_twice, self.norm2 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.first, self.second, self.shared_norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.plain, self.norm3 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.used_twice(x)
        x = self.norm1(y) + y
        x = self.norm2(self.called_twice(x)) + self.called_twice(x + 1)
        x = self.shared_norm(self.first(x)) + self.shared_norm(self.second(x))
        return self.norm3(self.plain(x))


def test_only_convolutions_with_one_use_are_fused():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = randomised(MultiExpert(Mixed(), [branch], [nn.Linear(3, 2)]))
    images = torch.randn(4, 3, 5, 5)
    fused = fuse_batch_norms(model, 5)
    remaining = [name for name, module in fused.trunk.named_children() if isinstance(module, nn.BatchNorm2d)]
    assert remaining == ["norm1", "norm2", "shared_norm"]
    assert isinstance(fused.trunk.norm3, Identity)
    with torch.inference_mode():
        assert torch.allclose(fused(images).logits, model.eval()(images).logits, atol=1e-5)
