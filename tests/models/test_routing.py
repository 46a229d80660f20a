"""Routed inference: the same outputs as from the logits of all experts, without running all of them."""

from itertools import pairwise

import pytest
import torch
from helpers.networks import HIERARCHICAL, PLAIN, options, slow_except
from helpers.routing import route_outputs
from torch import nn

from longtail import ExpertOutput, RoutedOutput
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.models.router import Router
from longtail.utils.ensembles import partial_ensembles
from longtail.utils.errors import InputError

NETWORKS = HIERARCHICAL | PLAIN
BACKBONES = (
    *("resnet32", "resnet10", "convnext_atto", "efficientnet_b0", "densenet121"),
    *("swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "eva02_tiny_patch14_224"),
)


class Count(nn.Module):
    """Identity that records the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, images):
        self.sizes.append(len(images))
        return images


def integer_model(experts=4, features=6, classes=5, seed=0):
    """A model with integer logits, whose rounding does not depend on the size of the batch."""
    torch.manual_seed(seed)
    heads = [nn.Linear(features, classes) for _ in range(experts)]
    for head in heads:
        for parameter in head.parameters():
            nn.init.uniform_(parameter, -9, 9).data.round_()
    router = Router(experts, features, classes, top_choices=3)
    with torch.no_grad():
        router.output[0].weight.mul_(0.1)
    return MultiExpert(nn.Flatten(), [Count() for _ in heads], heads, router=router).eval()


def integer_images(number, seed=1):
    return torch.randint(-5, 6, (number, 3, 1, 2), generator=torch.Generator().manual_seed(seed)).float()


THRESHOLDS = [-1, 0.2, 0.5, 0.6, 1.0, [0.3, 0.6, 0.5], [-1, -1, 1], [0.5, 1.0, 0.0]]


def assert_equal(first: RoutedOutput, second: RoutedOutput) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("number", [0, 1, 2, 50])
@torch.no_grad()
def test_route_equals_routing_of_stored_outputs(number, threshold):
    model = integer_model()
    images = integer_images(number)
    out = model(images)
    expected = route_outputs(out.logits, model.router(out.logits, out.features), threshold)
    assert_equal(model.route(images, threshold), expected)
    assert expected.logits.shape == (number, 5)
    assert expected.experts_used.dtype == torch.int64


@pytest.mark.parametrize("average", ["logits", "probabilities"])
@pytest.mark.parametrize("threshold", THRESHOLDS)
@torch.no_grad()
def test_routing_of_views_equals_routing_of_averaged_outputs(threshold, average):
    model, number = integer_model(), 30
    model.average = average
    views = [integer_images(number, seed) for seed in range(4)]
    outputs = [model(images) for images in views]
    router_logits = torch.stack([model.router(out.logits, out.features) for out in outputs]).mean(dim=0)
    logits = torch.stack([out.logits for out in outputs])
    by_probabilities = logits.softmax(dim=3).mean(dim=0).log().clamp(min=-1e4)
    logits = logits.mean(dim=0) if average == "logits" else by_probabilities
    expected = route_outputs(logits, router_logits, threshold, average)
    routed = model.route(torch.cat(views), threshold, num_views=4)
    assert torch.equal(routed.experts_used, expected.experts_used)
    torch.testing.assert_close(routed.logits.softmax(dim=1), expected.logits.softmax(dim=1), rtol=1e-4, atol=1e-6)
    if threshold == -1:
        torch.testing.assert_close(model.predict_logits(torch.cat(views), 4), routed.logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_outputs_do_not_depend_on_the_batch():
    model = integer_model()
    images = integer_images(20)
    together = model.route(images)
    assert len(together.experts_used.unique()) > 2
    for position in range(len(images)):
        alone = model.route(images[position : position + 1])
        assert_equal(alone, RoutedOutput(*(value[position : position + 1] for value in together)))


@torch.no_grad()
def test_route_equals_the_slow_version():
    model, images, limits = integer_model(), integer_images(30), [0.4, 0.5, 0.6]
    logits, experts_used = model.route(images, limits)
    for image, routed, used in zip(images, logits, experts_used.tolist(), strict=True):
        expert_logits = []
        for e, head in enumerate(model.heads):
            feature = image.flatten()
            expert_logits.append(head(feature))
            mean = torch.stack(expert_logits).mean(dim=0)
            last = e == len(model.heads) - 1
            if last or model.router.step(e, feature[None], mean[None]).sigmoid() <= limits[e]:
                break
        assert used == len(expert_logits)
        torch.testing.assert_close(routed, mean)


@torch.no_grad()
def test_smallest_and_largest_thresholds():
    model, images = integer_model(), integer_images(20)
    everything, first = model.route(images, threshold=-1), model.route(images, threshold=1)
    out = model(images)
    assert (everything.experts_used == 4).all()
    torch.testing.assert_close(everything.logits, out.ensemble)
    assert (first.experts_used == 1).all()
    assert torch.equal(first.logits, out.logits[:, 0])


def test_higher_thresholds_run_fewer_experts():
    model, images = integer_model(), integer_images(200)
    used = [model.route(images, threshold).experts_used for threshold in torch.linspace(-0.1, 1.0, 12).tolist()]
    assert all((a >= b).all() for a, b in pairwise(used))
    assert len({int(number.sum()) for number in used}) > 4


def test_image_that_stopped_does_not_continue():
    logits = torch.arange(6.0).view(1, 3, 2)
    routed = route_outputs(logits, torch.tensor([[-1.0, 5.0]]))
    assert routed.experts_used.tolist() == [1]
    assert torch.equal(routed.logits, logits[:, 0])


# ---- computation ----


@pytest.mark.parametrize("threshold", THRESHOLDS)
@torch.no_grad()
def test_branches_and_heads_run_on_active_images_only(threshold):
    model = integer_model()
    in_heads = [0] * 4
    for e, head in enumerate(model.heads):
        head.register_forward_hook(lambda _, inputs, output, e=e: in_heads.__setitem__(e, len(inputs[0])))
    experts_used = model.route(integer_images(50), threshold).experts_used
    expected = [int((experts_used > e).sum()) for e in range(4)]
    for branch, number in zip(model.branches, expected, strict=True):
        assert branch.sizes == ([number] if number else [])
    assert in_heads == expected


@pytest.mark.parametrize("name", ["resnet32", "efficientnet_b0"])
@torch.no_grad()
def test_channels_last_is_kept(name):
    model = create_model(name, 5, 3, width="full", router={}).eval().to(memory_format=torch.channels_last)
    formats = []
    for branch in model.branches:
        branch.register_forward_pre_hook(
            lambda _, inputs: formats.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
    images = torch.randn(6, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    out = model(images)
    middle = model.router(out.logits, out.features)[:, 0].sigmoid().median().item()
    formats.clear()
    routed = model.route(images, [middle, -1])
    assert 1 < routed.experts_used.float().mean() < 3
    assert formats == [True] * 3


# ---- real networks ----


def spread(router: Router, out: ExpertOutput) -> None:
    """Scales a new router so that its logits have mean 0 and standard deviation 1 over the images."""
    deviation, mean = torch.std_mean(router(out.logits, out.features), dim=0)
    for layer, a, b in zip(router.output, deviation, mean, strict=True):
        layer.weight.div_(a)
        layer.bias.sub_(b).div_(a)


@pytest.mark.parametrize("name", slow_except(["resnet32", "vit_tiny_patch16_224"], BACKBONES))
@torch.no_grad()
def test_route_equals_routing_of_stored_outputs_in_real_networks(name):
    size, num_images = NETWORKS[name], 8
    torch.manual_seed(0)
    width = "full" if name in PLAIN or name.startswith(("eff", "dense")) else "narrow"
    router = {"top_choices": 10, "shared": False}
    model = create_model(name, 20, 3, width=width, router=router, **options(name, size)).eval()
    images = torch.randn(num_images, 3, size, size) * torch.linspace(0.1, 3, num_images)[:, None, None, None]
    out = model(images)
    spread(model.router, out)
    router_logits = model.router(out.logits, out.features)
    expected, routed = route_outputs(out.logits, router_logits), model.route(images)
    assert len(routed.experts_used.unique()) > 1
    clear = (router_logits.abs() > 1e-2).all(dim=1)
    assert clear.sum() > num_images / 2
    assert torch.equal(routed.experts_used[clear], expected.experts_used[clear])
    # Images near the threshold may stop at another expert; they have the outputs of that expert's ensemble.
    ensembles = partial_ensembles(out.logits)[torch.arange(num_images), routed.experts_used - 1]
    torch.testing.assert_close(routed.logits, ensembles, rtol=1e-4, atol=1e-4)


def test_routed_outputs_have_gradients():
    model, images = integer_model(), integer_images(5).requires_grad_()
    model.route(images, threshold=-1).logits.sum().backward()
    expected = torch.stack([head.weight.sum(dim=0) for head in model.heads]).mean(dim=0)
    torch.testing.assert_close(images.grad.flatten(1), expected.expand(5, -1))


# ---- errors ----


def test_no_router():
    model = create_model("resnet20", 5, 2)
    with pytest.raises(InputError, match=r"no router.*longtail router"):
        model.route(torch.zeros(1, 3, 8, 8))


def test_wrong_number_of_thresholds():
    model = integer_model()
    with pytest.raises(InputError, match=r"2 thresholds \[0.5, 0.5\].* 3"):
        model.route(integer_images(1), [0.5, 0.5])
    with pytest.raises(InputError, match="4 thresholds"):
        route_outputs(torch.zeros(1, 4, 5), torch.zeros(1, 3), [0.5] * 4)
