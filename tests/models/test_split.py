import copy

import pytest
import torch
from helpers.networks import HIERARCHICAL, NOT_TO_BE_CUT, PLAIN, options

from longtail.models.backbones import backbone, list_backbones
from longtail.models.multi_expert import create_model
from longtail.models.split import split_backbone
from longtail.utils.errors import InputError

NETWORKS = HIERARCHICAL | PLAIN
OPTIONS = {name: options(name, size) for name, size in NETWORKS.items()}


def seeded(name, **settings):
    """The same weights at every build, so that a branch can be compared with the whole network."""
    build = backbone(name, **settings)

    def with_seed():
        torch.manual_seed(0)
        return build().eval()

    return with_seed


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_parts_are_the_network(name):
    size = NETWORKS[name]
    build = seeded(name, **OPTIONS[name])
    network = build()
    images = torch.randn(2, 3, size, size)
    parts = split_backbone(build, num_branches=1)
    with torch.inference_mode():
        shared = parts.trunk(images)
        features = parts.neck(parts.branches[0](shared))
        torch.testing.assert_close(features, network(images), rtol=0, atol=0)
    assert len(shared) == 2  # whatever else it is, images lie along its first dimension
    assert features.shape == (2, parts.num_features)
    assert count(parts.trunk) + count(parts.branches[0]) + count(parts.neck) == count(network)
    assert count(parts.trunk) > 0
    assert count(parts.branches[0]) > 0
    whole = network.state_dict()
    for part in (parts.trunk, parts.neck, *(parts.branches if name in HIERARCHICAL else ())):
        for key, value in part.state_dict().items():
            torch.testing.assert_close(value, whole[key], rtol=0, atol=0)


def test_batch_norm_after_pooling_is_no_obstacle():
    with torch.device("meta"):
        assert create_model("mobilenetv4_conv_small", 5, 2, width="full").num_experts == 2


def test_the_list_is_long_enough():
    assert len(HIERARCHICAL) >= 15
    assert len(PLAIN) >= 5


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("own", [1, 3])
def test_where_to_branch(name, own):
    size = NETWORKS[name]
    build = seeded(name, **OPTIONS[name])
    parts = split_backbone(build, 1, expert_stages=own)
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        features = parts.neck(parts.branches[0](parts.trunk(images)))
        torch.testing.assert_close(features, build()(images), rtol=0, atol=0)
    assert count(parts.branches[0]) != count(split_backbone(build, 1, expert_stages=2).branches[0])


@pytest.mark.parametrize("name", ["resnet32", "resnet18", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_too_many_stages_say_how_many_there_are(name):
    for wrong in (0, 40):
        with pytest.raises(InputError, match=f"expert_stages is {wrong}; .* must be from 1 to"):
            create_model(name, 3, expert_stages=wrong, width="full", **OPTIONS[name])


@pytest.mark.parametrize("name", NOT_TO_BE_CUT)
def test_what_cannot_be_cut_says_so(name):
    with pytest.raises(InputError, match=r"cannot be split.*can be split include ResNet.*ViT") as error:
        create_model(name, 3, width="full")
    assert "\n" not in str(error.value)


def test_batch_norm_after_pooling_does_not_prevent_the_cut():
    """Networks are built in training mode, where it cannot take a single image."""
    model = create_model("mobilenetv4_conv_small", 5, 2, width="full")
    assert model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 2, 5)


def test_experts_differ_and_share():
    model = create_model("convnext_atto", 5, 3, width="full")
    first, second, _ = (branch.stages[3].blocks[0].mlp.fc1.weight for branch in model.branches)
    assert not torch.equal(first, second)
    assert model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 3, 5)
    assert not any("stages.3" in name for name, _ in model.trunk.named_parameters())


@pytest.mark.parametrize("name", ["resnet10", "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"])
def test_models_can_be_copied(name):
    """The trunk's forward is its own, also in a copy."""
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
    ("name", "widths"),
    [("resnet10", [192, 384]), ("convnext_atto", [120, 240]), ("swin_tiny_patch4_window7_224", [288, 576])],
)
def test_narrow_is_three_quarters(name, widths):
    shapes = [
        {key: value.shape for key, value in create_model(name, 5, 2, width=width, **OPTIONS[name]).state_dict().items()}
        for width in ("narrow", widths)
    ]
    assert shapes[0] == shapes[1]
    full = create_model(name, 5, 2, width="full", **OPTIONS[name])
    assert sum(shape.numel() for shape in shapes[0].values()) < count(full)


def test_swin_goes_down_to_three_halves():
    """RIDE-Swin: the shared down-sampling takes C to 3C/2, heads stay as many, one norm for all experts."""
    model = create_model("swin_tiny_patch4_window7_224", 5, 2, **OPTIONS["swin_tiny_patch4_window7_224"])
    assert model.trunk.layers[2].downsample.reduction.weight.shape == (288, 4 * 192)
    attention = model.branches[1].layers[2].blocks[0].attn
    assert (attention.num_heads, attention.qkv.weight.shape) == (12, (3 * 288, 288))
    assert model.neck.norm.weight.shape == (576,)
    with pytest.raises(InputError, match="12 heads"):
        create_model("swin_tiny_patch4_window7_224", 5, 2, width=[290, 576])


def test_fixed_widths_and_wrong_numbers_are_refused():
    with pytest.raises(InputError, match=r"caformer_s18 cannot be made narrower .*'full'"):
        create_model("caformer_s18", 10, 3)
    with pytest.raises(InputError, match=r"fixed widths.*'full'"):
        create_model("efficientnet_b0", 5)
    with pytest.raises(InputError, match=r"2 numbers.*\[256, 512\]"):
        create_model("resnet10", 5, width=[100])


# ---- names, options, pretrained weights ----


def test_unknown_names_and_options():
    with pytest.raises(InputError, match="unknown backbone 'convnext_atta'; did you mean 'convnext_atto'"):
        create_model("convnext_atta", 5)
    with pytest.raises(InputError, match=r"convnext_atto: .*'colour'"):
        create_model("convnext_atto", 5, colour=3)
    assert {"resnet32", "resnet10", "resnext152_32x4d", "swin_tiny_patch4_window7_224"} <= set(list_backbones())


def test_options_reach_the_network():
    model = create_model("convnext_atto", 5, 2, width="full", drop_path_rate=0.5)
    assert model.branches[0].stages[3].blocks[1].drop_path.drop_prob == 0.5


def test_last_batch_norm_of_a_block_starts_at_one():
    model = create_model("resnet18", 5, 1)
    assert model.trunk.layer1[0].bn2.weight.eq(1).all()


@pytest.fixture
def weights(tmp_path):
    """A file of ResNet-18 with a classifier of its own, as others publish them."""
    import timm

    torch.manual_seed(3)
    network = timm.create_model("resnet18", num_classes=7)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth", network.state_dict()


def test_local_weights_go_into_trunk_and_all_branches(weights):
    file, state = weights
    model = create_model("resnet18", 5, 3, width="full", pretrained=file)
    parts = [model.trunk, *model.branches]
    for part in parts:
        for key, value in part.state_dict().items():
            assert torch.equal(value, state[key])
    assert sum(len(part.state_dict()) for part in parts[:2]) == len(state) - 2  # all but the classifier


def test_narrowed_stages_start_afresh(weights):
    file, state = weights
    model = create_model("resnet18", 5, 2, pretrained=file)
    assert torch.equal(model.trunk.layer2[0].conv1.weight, state["layer2.0.conv1.weight"])
    assert not torch.equal(model.branches[0].layer4[0].conv1.weight, model.branches[1].layer4[0].conv1.weight)


@pytest.mark.parametrize(("name", "weights"), [("resnet18", "no/such/file"), ("resnet32", True), ("resnet10", True)])
def test_weights_that_are_not_there(name, weights):
    with pytest.raises(InputError, match="pretrained weights"):
        create_model(name, 5, pretrained=weights)


def test_weights_of_another_network(weights):
    with pytest.raises(InputError, match="pretrained weights of convnext_atto cannot be loaded"):
        create_model("convnext_atto", 5, width="full", pretrained=weights[0])
