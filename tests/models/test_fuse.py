"""Folded networks answer as they did; what cannot be fuse_batch_norms is left alone."""

import copy

import pytest
import torch
from helpers.networks import options
from torch import nn

from longtail.models.fuse import fuse_batch_norms
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.models.split import Identity

# Name -> side of the images, batch norms that remain; None: some, as they do not all follow one convolution.
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


def norms(model):
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


def trained_like(model, seed=0):
    """Batch norms as training leaves them: no two channels alike."""
    draw = torch.Generator().manual_seed(seed)
    for norm in norms(model):
        with torch.no_grad():
            for tensor, low, high in (
                (norm.running_mean, -0.3, 0.3),
                (norm.running_var, 0.3, 2.0),
                (norm.weight, 0.5, 1.5),
                (norm.bias, -0.3, 0.3),
            ):
                tensor.uniform_(low, high, generator=draw)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_answers_stay_the_same(name):
    size, remaining = NETWORKS[name]
    torch.manual_seed(0)
    model = trained_like(create_model(name, 7, 2, width="full", **({"image_size": size} | options(name, size))))
    before = copy.deepcopy(model.state_dict())
    faster = fuse_batch_norms(model, size)
    assert model.training
    assert not faster.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    images = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        right, given = model.eval()(images), faster(images)
    for one, other in zip(given[:2], right[:2], strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()
    if remaining is None:
        assert 0 < len(norms(faster)) < len(norms(model))
    else:
        assert len(norms(faster)) == remaining


def test_routing_stays_the_same():
    torch.manual_seed(0)
    model = trained_like(create_model("resnet20", 10, 3, router={})).eval()
    images = torch.randn(64, 3, 32, 32)
    with torch.inference_mode():
        out = model(images)
        says = model.router(out.logits, out.features).sigmoid()
        limits = says.median(dim=0).values.tolist()
        right, given = model.route(images, limits), fuse_batch_norms(model, 32).route(images, limits)
    # At the median itself rounding decides.
    sure = ((says - torch.tensor(limits)).abs() > 1e-4).all(dim=1)
    assert sure.sum() > 50
    assert right.experts_used.unique().tolist() == [1, 2, 3]
    assert torch.equal(given.experts_used[sure], right.experts_used[sure])
    assert torch.allclose(given.logits[sure], right.logits[sure], rtol=1e-4, atol=1e-4)


class Odd(nn.Module):
    """Convolutions whose results, or whose weights, are needed otherwise too."""

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


def test_only_what_is_certain_is_folded():
    torch.manual_seed(0)
    branch = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = trained_like(MultiExpert(Odd(), [branch], [nn.Linear(3, 2)]))
    images = torch.randn(4, 3, 5, 5)
    faster = fuse_batch_norms(model, 5)
    left = [name for name, module in faster.trunk.named_children() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["norm1", "norm2", "shared_norm"]
    assert isinstance(faster.trunk.norm3, Identity)
    with torch.inference_mode():
        assert torch.allclose(faster(images).logits, model.eval()(images).logits, atol=1e-5)
