"""The multi-expert model: shapes, sizes, splitting of CIFAR networks, initial weights."""

from typing import get_args

import pytest
import torch

from longtail.models.backbones import backbone, input_format
from longtail.models.heads import CosineClassifier
from longtail.models.multi_expert import MultiExpert, create_model
from longtail.models.resnet_cifar import BLOCKS_PER_STAGE, BasicBlock, CifarResNet
from longtail.models.split import split_backbone
from longtail.utils.choices import Average
from longtail.utils.ensembles import ensemble
from longtail.utils.errors import InputError


def images(num: int = 2, height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(num, 3, height, width, generator=torch.Generator().manual_seed(0))


def num_parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---- outputs ----


@pytest.mark.parametrize("head", ["cosine", "linear"])
@pytest.mark.parametrize("experts", [1, 3])
def test_shapes(experts, head):
    model = create_model("resnet20", num_classes=7, num_experts=experts, head=head)
    out = model(images(2))
    assert model.num_experts == experts
    assert out.logits.shape == (2, experts, 7)
    assert out.features.shape == (2, experts, 48)
    torch.testing.assert_close(out.ensemble, sum(out.logits[:, e] for e in range(experts)) / experts)


@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (64, 64), (9, 31)])
def test_image_sizes(height, width):
    out = create_model("resnet20", 5, 2).eval()(images(2, height, width))
    assert out.logits.shape == (2, 2, 5)
    assert out.logits.isfinite().all()
    assert not torch.equal(out.logits[0], out.logits[1])


def test_chosen_experts_in_their_order():
    model = create_model("resnet20", 5, 3).eval()
    output, chosen = model(images()), model(images(), experts=[2, 0])
    torch.testing.assert_close(chosen.logits, output.logits[:, [2, 0]])
    torch.testing.assert_close(chosen.features, output.features[:, [2, 0]])


@pytest.mark.parametrize("average", get_args(Average))
def test_ensemble_is_the_prediction_of_the_model(average):
    model = create_model("resnet20", 5, 3, average=average).eval()
    out = model(images())
    assert torch.equal(out.ensemble, ensemble(out.logits, average))
    assert torch.equal(model.predict_logits(images()), out.ensemble)
    with pytest.warns(DeprecationWarning, match="predict_logits"):
        assert torch.equal(model.answer(images()), out.ensemble)


def test_forward_applies_heads_to_branches_of_the_trunk():
    model = create_model("resnet20", 5, 2).eval()
    out, shared = model(images()), model.trunk(images())
    for e in range(2):
        features = model.branches[e](shared)
        torch.testing.assert_close(out.features[:, e], features)
        torch.testing.assert_close(out.logits[:, e], model.heads[e](features))


def test_every_expert_has_gradients_for_the_trunk():
    for expert in range(2):
        model = create_model("resnet20", 5, 2)
        model(images(4)).logits[:, expert].square().sum().backward()
        assert model.trunk.conv1.weight.grad.abs().sum() > 0
        # The gradient of the other expert is zero.
        assert not any(parameter.grad.any() for parameter in model.branches[1 - expert].parameters())


# ---- sizes ----


# RIDE's narrow ResNet-32 with cosine heads and 100 classes. 1 to 3 experts: counts of the original (golden keys.json).
@pytest.mark.parametrize(("experts", "expected"), [(1, 277_168), (2, 530_512), (3, 783_856), (4, 1_037_200)])
def test_number_of_parameters(experts, expected):
    assert num_parameters(create_model("resnet32", 100, experts)) == expected


@pytest.mark.parametrize(
    ("width", "head", "expected"),
    [
        ("full", "linear", 470_004),
        ("full", "cosine", 469_904),
        ("narrow", "linear", 277_268),
        ([40, 96], "cosine", 952_560),
    ],
)
def test_number_of_parameters_by_width_and_head(width, head, expected):
    assert num_parameters(create_model("resnet32", 100, 1, width=width, head=head)) == expected


# He et al. (2016), table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M and 1.7 M with 10 classes.
@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_full_networks_have_their_published_size(name, millions):
    model = create_model(name, 10, 1, width="full", head="linear")
    assert num_parameters(model) / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.005)


def test_widths():
    narrow, full, explicit = (create_model("resnet20", 5, 1, width=width) for width in ("narrow", "full", [20, 36]))
    features = [model(images()).features.shape[2] for model in (narrow, full, explicit)]
    assert features == [48, 64, 36]
    assert explicit.branches[0].layer2[0].conv1.weight.shape == (20, 16, 3, 3)
    assert narrow.branches[0].layer2[0].conv1.weight.shape == (24, 16, 3, 3)


def test_narrow_means_three_quarters():
    narrow, explicit = (create_model("resnet20", 5, 2, width=width) for width in ("narrow", [24, 48]))
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (narrow, explicit)]
    assert shapes[0] == shapes[1]


def test_stages_can_become_narrower():
    """As in the original, the shortcut then removes the same number of channels on each side."""
    assert create_model("resnet20", 5, 2, width=[12, 48])(torch.zeros(1, 3, 8, 8)).features.shape == (1, 2, 48)
    block = BasicBlock(4, 2, 1)
    torch.testing.assert_close(block.shortcut(torch.arange(4.0).view(1, 4, 1, 1)).flatten(), torch.tensor([1.0, 2.0]))


# ---- errors ----


@pytest.mark.parametrize(
    ("width", "message"),
    [
        ([21, 48], "16 -> 21 do not"),
        ([24, 49], "24 -> 49 do not"),
        ([24], "2 numbers, for its last stages"),
        ([16, 24, 48], "2 numbers, for its last stages"),
        ("wide", "width 'wide': .*'narrow', 'full' or"),
    ],
)
def test_invalid_widths(width, message):
    with pytest.raises(ValueError, match=message):
        create_model("resnet20", 5, 2, width=width)


@pytest.mark.parametrize(
    ("name", "near"), [("resnet23", "resnet20"), ("ResNet32", "resnet32"), ("resnet-56", "resnet56")]
)
def test_unknown_backbone_with_a_similar_name(name, near):
    with pytest.raises(ValueError, match=f"unknown backbone '{name}'; did you mean '") as error:
        create_model(name, 5)
    assert all(backbone in str(error.value) for backbone in BLOCKS_PER_STAGE)
    assert near in str(error.value)


def test_unknown_backbone_without_a_similar_name():
    with pytest.raises(ValueError, match=r"unknown backbone 'swim'; .*resnet20, ") as error:
        create_model("swim", 5)
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 5, "num_experts": 0}, "num_experts 0"),
        ({"num_classes": 5, "head": "cosin"}, "head is 'cosin'; .* cosine, linear"),
    ],
)
def test_invalid_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        create_model("resnet20", **arguments)


# ---- splitting ----


@pytest.mark.parametrize(
    ("name", "expert_stages"), [*((f"resnet{depth}", 2) for depth in (20, 32, 44, 56, 110)), ("resnet20", 1)]
)
def test_branch_after_trunk_computes_the_same_as_the_network(name, expert_stages):
    build = backbone(name, "narrow")
    network = build()
    randomize_statistics(network)
    trunk, (branch, _), _, _ = split_backbone(build, 2, expert_stages)
    weights = network.state_dict()
    in_trunk, in_branch = trunk.state_dict().keys(), branch.state_dict().keys()
    assert in_trunk | in_branch == weights.keys()
    assert not in_trunk & in_branch
    trunk.load_state_dict({key: weights[key] for key in in_trunk}, strict=True)
    branch.load_state_dict({key: weights[key] for key in in_branch}, strict=True)
    for mode in (True, False):
        expected = network.train(mode)(images(2, 16, 16))
        assert torch.equal(branch.train(mode)(trunk.train(mode)(images(2, 16, 16))), expected)


def randomize_statistics(network: torch.nn.Module) -> None:
    """Gives all batch norms different weights and statistics."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var, module.running_mean):
                tensor.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.parametrize("name", BLOCKS_PER_STAGE)
def test_depth_is_in_the_name(name):
    """He et al. count convolutions and the classifier."""
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in backbone(name)().modules())
    assert f"resnet{convolutions + 1}" == name


def test_network_does_not_change_its_input():
    """Its activations work in place."""
    batch = images()
    create_model("resnet20", 5, 2)(batch)
    assert torch.equal(batch, images())


def test_branches_do_not_change_the_output_of_the_trunk():
    model = create_model("resnet20", 5, 2).eval()
    shared = model.trunk(images())
    copy = shared.clone()
    model.branches[0](shared)
    assert torch.equal(shared, copy)


# ---- initial weights ----


def test_experts_start_with_different_weights():
    model = create_model("resnet20", 5, 3)
    for (name, first), second in zip(model.branches[0].named_parameters(), model.branches[1].parameters(), strict=True):
        assert torch.equal(first, second) == ("bn" in name), name
    assert not torch.equal(model.heads[0].weight, model.heads[1].weight)


def test_initial_weights_depend_on_the_seed():
    def create(seed: int) -> MultiExpert:
        torch.manual_seed(seed)
        return create_model("resnet20", 5, 2)

    a, b, c = create(0).state_dict(), create(0).state_dict(), create(1).state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["trunk.conv1.weight"], c["trunk.conv1.weight"])


def test_convolutions_start_kaiming_normal_by_fan_in():
    network = CifarResNet(5, (16, 32, 64))
    for name, weight in network.named_parameters():
        if weight.ndim == 4 and weight.numel() > 2000:
            expected = (2 / weight[0].numel()) ** 0.5
            # The relative error of the standard deviation of n normal values is 1 / sqrt(2n).
            assert weight.std().item() == pytest.approx(expected, rel=5 / (2 * weight.numel()) ** 0.5), name


def test_cosine_heads_start_with_length_1():
    torch.manual_seed(0)
    weight = CosineClassifier(48, 100).weight
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(100))
    assert weight.min() < 0 < weight.max()


def test_cosine_head():
    head = CosineClassifier(4, 3, scale=10.0)
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        head.weight *= torch.tensor([[0.5], [2.0], [7.0]])
    cosines = torch.stack([torch.cosine_similarity(features, row[None], dim=1) for row in head.weight], dim=1)
    torch.testing.assert_close(head(features), 10 * cosines)
    torch.testing.assert_close(head(100 * features), 10 * cosines)


def test_linear_heads_start_kaiming_normal():
    torch.manual_seed(0)
    head = create_model("resnet20", 2000, 1, head="linear").heads[0]
    assert head.weight.std().item() == pytest.approx((2 / 48) ** 0.5, rel=5 / (2 * head.weight.numel()) ** 0.5)
    assert head.bias is not None


def test_initial_weights_of_heads():
    """As in the original: Kaiming-normal for CIFAR networks, deviation 0.02 for transformers, torch's default else."""
    torch.manual_seed(0)
    classes = 2000
    cifar = create_model("resnet20", classes, 1, head="linear").heads[0]
    assert cifar.weight.std().item() == pytest.approx((2 / 48) ** 0.5, rel=0.02)
    for head in ("linear", "cosine"):
        swin = create_model(
            "swin_tiny_patch4_window7_224", classes, 1, head=head, embed_dim=24, depths=(1, 1, 1, 1), image_size=56
        ).heads[0]
        assert swin.weight.std().item() == pytest.approx(0.02, rel=0.02)
    default = create_model("resnet10", classes, 1, head="linear").heads[0]
    assert default.weight.abs().max().item() == pytest.approx(384**-0.5, rel=0.01)
    cosine = create_model("resnet10", classes, 1).heads[0]
    torch.testing.assert_close(cosine.weight.norm(dim=1), torch.ones(classes))


def test_unknown_options():
    with pytest.raises(InputError, match="resnet32 does not accept drop_path_rate"):
        create_model("resnet32", 5, drop_path_rate=0.1)
    with pytest.raises(InputError, match="vgg11"):
        create_model("vgg11", 5, width="full", drop_path_rate=0.1)
    with pytest.raises(
        InputError, match=r"swin_tiny_patch4_window7_224 cannot be built with .*depths=\[1, 1, 1, 1, 1\]"
    ):
        create_model("swin_tiny_patch4_window7_224", 5, depths=[1] * 5)
    with pytest.raises(InputError, match=r"resnet10 cannot be built with depths=\[1\]"):
        create_model("resnet10", 5, depths=[1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swin_tiny_patch4_window7_224", (224, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("vit_tiny_patch16_224", (224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
        ("vit_base_patch16_384", (384, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))),
        ("resnext101_32x4d", (224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("resnet32", (224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
        ("resnet10", (224, "bilinear", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    ],
)
def test_input_format_of_published_networks(name, expected):
    assert tuple(input_format(name)) == expected
