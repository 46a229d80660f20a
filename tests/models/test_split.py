"""Splitting of networks of all kinds, their widths, options and pretrained weights."""

import copy

import pytest
import timm
import torch
from helpers.networks import FAST, HIERARCHICAL, PLAIN, UNSPLITTABLE, options, slow_except

from longtail.models.backbones import backbone, list_backbones
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import create_model
from longtail.models.split import split_backbone
from longtail.utils.errors import InputError

NETWORKS = HIERARCHICAL | PLAIN
OPTIONS = {name: options(name, size) for name, size in NETWORKS.items()}
SWIN = "swin_tiny_patch4_window7_224"


def seeded(name, **settings):
    """A function that builds the same weights at each call, so that parts can be compared with the full network."""
    build = backbone(name, **settings)

    def with_seed():
        torch.manual_seed(0)
        return build().eval()

    return with_seed


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def shapes(name, **arguments):
    """Shapes of a model's tensors by name."""
    with skip_init(), torch.device("meta"):
        model = create_model(name, 5, 2, **arguments)
    return {key: value.shape for key, value in model.state_dict().items()}


@pytest.mark.parametrize("name", slow_except(FAST, NETWORKS))
def test_parts_compute_the_same_as_the_network(name):
    size = NETWORKS[name]
    build = seeded(name, **OPTIONS[name])
    network = build()
    images = torch.randn(2, 3, size, size)
    parts = split_backbone(build, num_branches=1)
    with torch.inference_mode():
        shared = parts.trunk(images)
        features = parts.neck(parts.branches[0](shared))
        assert torch.equal(features, network(images))
    assert len(shared) == 2  # images are in the first dimension
    assert features.shape == (2, parts.num_features)
    assert count(parts.trunk) + count(parts.branches[0]) + count(parts.neck) == count(network)
    assert count(parts.trunk) > 0
    assert count(parts.branches[0]) > 0
    weights = network.state_dict()
    for part in (parts.trunk, parts.neck, *(parts.branches if name in HIERARCHICAL else ())):
        for key, value in part.state_dict().items():
            assert torch.equal(value, weights[key])


def test_enough_networks_are_split():
    assert len(HIERARCHICAL) >= 15
    assert len(PLAIN) >= 5


@pytest.mark.parametrize(
    "name",
    slow_except(("resnet18", "vit_tiny_patch16_224"), ("resnet18", "vit_tiny_patch16_224", "convnext_atto", SWIN)),
)
@pytest.mark.parametrize("expert_stages", [1, 3])
def test_number_of_expert_stages(name, expert_stages):
    size = NETWORKS[name]
    build = seeded(name, **OPTIONS[name])
    parts = split_backbone(build, 1, expert_stages=expert_stages)
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(parts.neck(parts.branches[0](parts.trunk(images))), build()(images))
    assert count(parts.branches[0]) != count(split_backbone(build, 1, expert_stages=2).branches[0])


@pytest.mark.parametrize(
    ("name", "experts_from"),
    [
        ("resnet18", "layer4.1"),
        ("tf_efficientnet_lite0", "blocks.6"),
        ("convnext_atto", "stages.2"),
        (SWIN, "layers.3"),
    ],
)
def test_experts_may_start_at_any_module(name, experts_from):
    size = 224 if name == SWIN else 64
    build = seeded(name)
    parts = split_backbone(build, 2, image_size=size, experts_from=experts_from)
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(parts.neck(parts.branches[1](parts.trunk(images))), build()(images))
    assert any(key.startswith(f"{experts_from}.") for key in parts.branches[0].state_dict())
    assert not any(key.startswith(f"{experts_from}.") for key in parts.trunk.state_dict())


def test_experts_start_at_a_module_that_exists():
    for name in ("layer9", "conv1"):
        with pytest.raises(InputError, match=rf"experts_from is '{name}', which is no module .* layer3, layer4, "):
            create_model("resnet18", 5, experts_from=name)
    with pytest.raises(InputError, match="plain vision transformers have expert_stages instead"):
        create_model("test_vit", 5, width="full", experts_from="blocks.1")


@pytest.mark.parametrize("number", [0, 40])
@pytest.mark.parametrize("name", ["resnet32", "resnet18", "vit_tiny_patch16_224", SWIN])
def test_number_of_expert_stages_that_is_out_of_range(name, number):
    with pytest.raises(InputError, match=f"expert_stages is {number}; .* from 1 to"), torch.device("meta"):
        create_model(name, 3, expert_stages=number, width="full", **OPTIONS[name])


@pytest.mark.parametrize("name", UNSPLITTABLE)
def test_network_that_cannot_be_split(name):
    with pytest.raises(InputError, match=r"cannot be split.*ResNet.*ViT") as error:
        create_model(name, 3, width="full")
    assert "\n" not in str(error.value)


def test_batch_norm_after_pooling_does_not_prevent_splitting():
    """In training mode, in which networks are built, such a batch norm does not accept a single image."""
    model = create_model("mobilenetv4_conv_small", 5, 2, width="full")
    assert model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 2, 5)


def test_experts_start_with_different_weights():
    model = create_model("convnext_atto", 5, 3, width="full")
    first, second, _ = (branch.stages[3].blocks[0].mlp.fc1.weight for branch in model.branches)
    assert not torch.equal(first, second)
    assert model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 3, 5)
    assert not any("stages.3" in name for name, _ in model.trunk.named_parameters())


@pytest.mark.parametrize("name", ["resnet10", "vit_tiny_patch16_224", pytest.param(SWIN, marks=pytest.mark.slow)])
def test_copied_model_uses_its_own_weights(name):
    """The forward function of the trunk is an attribute of the module."""
    size = NETWORKS[name]
    width = "full" if "vit" in name else "narrow"
    model = create_model(name, 5, 2, width=width, **OPTIONS[name]).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        assert model(images).features.abs().sum() > 0
        assert other(images).features.abs().sum() == 0


# ---- widths ----


@pytest.mark.parametrize(
    ("name", "widths"), [("resnet10", [192, 384]), ("convnext_atto", [120, 240]), (SWIN, [288, 576])]
)
def test_narrow_means_three_quarters(name, widths):
    narrow = shapes(name, width="narrow", **OPTIONS[name])
    assert narrow == shapes(name, width=widths, **OPTIONS[name])
    full = shapes(name, width="full", **OPTIONS[name])
    assert sum(map(torch.Size.numel, narrow.values())) < sum(map(torch.Size.numel, full.values()))


def test_narrow_swin_is_that_of_ride_swin():
    """The shared down-sampling maps C to 3C/2, the number of heads stays, and all experts share the norm."""
    with skip_init(), torch.device("meta"):
        model = create_model(SWIN, 5, 2, **OPTIONS[SWIN])
    assert model.trunk.layers[2].downsample.reduction.weight.shape == (288, 4 * 192)
    attention = model.branches[1].layers[2].blocks[0].attn
    assert (attention.num_heads, attention.qkv.weight.shape) == (12, (3 * 288, 288))
    assert model.neck.norm.weight.shape == (576,)
    with pytest.raises(InputError, match=r"290.* 12 heads"), torch.device("meta"):
        create_model(SWIN, 5, 2, width=[290, 576])


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [
        ("caformer_s18", "narrow", r"caformer_s18 .*narrower.*'full'"),
        ("efficientnet_b0", "narrow", r"efficientnet_b0 .*fixed widths.*'full'"),
        ("resnet10", [100], r"resnet10.*2 numbers.*\[256, 512\]"),
    ],
)
def test_width_that_a_network_cannot_have(name, width, message):
    with pytest.raises(InputError, match=message):
        create_model(name, 5, width=width)


# ---- names, options, pretrained weights ----


def test_unknown_names_and_options():
    with pytest.raises(InputError, match=r"'convnext_atta'.*did you mean 'convnext_atto'"):
        create_model("convnext_atta", 5)
    with pytest.raises(InputError, match=r"convnext_atto.*'colour'"):
        create_model("convnext_atto", 5, colour=3)
    assert {"resnet32", "resnet10", "resnext152_32x4d", SWIN} <= set(list_backbones())


def test_options_reach_the_network():
    model = create_model("convnext_atto", 5, 2, width="full", drop_path_rate=0.5)
    assert model.branches[0].stages[3].blocks[1].drop_path.drop_prob == 0.5


def test_last_batch_norm_of_a_block_starts_at_one():
    model = create_model("resnet18", 5, 1)
    assert model.trunk.layer1[0].bn2.weight.eq(1).all()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with the weights of a ResNet-18 with a classifier, and these weights."""
    torch.manual_seed(3)
    state = timm.create_model("resnet18", num_classes=7).state_dict()
    file = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save(state, file)
    return file, state


def test_pretrained_weights_go_into_the_trunk_and_all_branches(weights):
    file, state = weights
    model = create_model("resnet18", 5, 3, width="full", pretrained=file)
    parts = [model.trunk, *model.branches]
    for part in parts:
        for key, value in part.state_dict().items():
            assert torch.equal(value, state[key])
    assert sum(len(part.state_dict()) for part in parts[:2]) == len(state) - 2  # all except the classifier


def test_narrow_stages_start_with_random_weights(weights):
    file, state = weights
    model = create_model("resnet18", 5, 2, pretrained=file)
    assert torch.equal(model.trunk.layer2[0].conv1.weight, state["layer2.0.conv1.weight"])
    assert not torch.equal(model.branches[0].layer4[0].conv1.weight, model.branches[1].layer4[0].conv1.weight)


@pytest.mark.parametrize(("name", "source"), [("resnet18", "no/such/file"), ("resnet32", True), ("resnet10", True)])
def test_pretrained_weights_that_do_not_exist(name, source):
    with pytest.raises(InputError, match=f"pretrained weights.*{source if source is not True else name}"):
        create_model(name, 5, pretrained=source)


def test_pretrained_weights_of_another_network(weights):
    with pytest.raises(InputError, match="pretrained weights of convnext_atto cannot be loaded"):
        create_model("convnext_atto", 5, width="full", pretrained=weights[0])
