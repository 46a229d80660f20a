"""Multiply-accumulates of a model, compared with other ways to count, with the original code and with publications."""

import pytest
import torch
from helpers.golden import flops as golden_flops
from helpers.networks import HIERARCHICAL, PLAIN, options
from timm.models.swin_transformer import WindowAttention
from torch import nn

import longtail
from longtail.cli import main
from longtail.evaluation.flops import Cost, cost
from longtail.models.build import router_options
from longtail.models.heads import CosineClassifier
from longtail.models.multi_expert import create_model
from longtail.models.router import Router
from longtail.reports.cost_table import cost_table, planned_model
from longtail.runs.context import planned_architecture
from longtail.utils.errors import InputError


def on_meta(*arguments, **settings):
    with torch.device("meta"):
        return create_model(*arguments, **settings).eval()


# --- the cost of a routing ---

COST = Cost(trunk=1000, branches=(100, 200, 300), heads=(10, 20, 30), router=(1, 2))


def test_experts_and_router_steps_add_up():
    assert [COST.prefix(used) for used in (1, 2, 3)] == [1110, 1330, 1660]
    assert COST.total == 1660
    assert [COST.routed(used) for used in (1, 2, 3)] == [1111, 1333, 1663]
    assert (COST.prefix_costs, COST.routed_costs) == ([1110, 1330, 1660], [1111, 1333, 1663])


def test_expected_cost_is_the_mean_over_images():
    images = [1, 1, 1, 1, 3, 3, 2, 3]
    mean = sum(COST.routed(used) for used in images) / len(images)
    for unit in (1, 12.5, 1 / 8):
        shares = [unit * images.count(used) for used in (1, 2, 3)]
        assert COST.expected(shares) == pytest.approx(mean)
        assert COST.mean_experts(shares) == pytest.approx(15 / 8)


@pytest.mark.parametrize("shares", [(1, 2), (1, 2, 3, 4), (0, 0, 0), (-1, 1, 1), (1, 1, float("nan"))])
def test_invalid_shares(shares):
    with pytest.raises(InputError, match="shares"):
        COST.expected(shares)


@pytest.mark.parametrize("shared", [True, False])
def test_cost_of_a_router(shared):
    model = on_meta("resnet20", 10, 3)
    without = cost(model, 8)
    model.router = Router(3, 48, num_classes=10, shared=shared)
    assert cost(model, 8).router == (48 * 16 + 26, 48 * 16 + 26)
    assert cost(model, 8).total == without.total
    assert without.router == ()


# --- other ways to count ---


def count_by_hooks(model, size):
    """MACs from the shapes of each layer's input and output. Attention is two products of N x N x channels."""
    total = [0]

    def conv(layer, inputs, output):
        total[0] += output[0].numel() * layer.in_channels // layer.groups * layer.kernel_size[0] * layer.kernel_size[1]

    def linear(layer, inputs, output):
        total[0] += output.numel() * inputs[0].shape[-1]

    def attention(layer, inputs, output):
        windows, tokens, channels = inputs[0].shape
        total[0] += 2 * windows * tokens * tokens * channels

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(conv)
        elif isinstance(module, nn.Linear | CosineClassifier):
            module.register_forward_hook(linear)
        elif isinstance(module, WindowAttention) or type(module).__name__ == "Attention":
            module.register_forward_hook(attention)
    with torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return total[0]


BY_HOOKS = [
    "resnet32",
    "resnet50",
    "resnext50_32x4d",
    "convnext_atto",
    "regnety_002",
    "vit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "swin_tiny_patch4_window7_224",
]
SLOW_BY_HOOKS = ["efficientnet_b0", "mobilenetv4_conv_small", "densenet121", "repvgg_a0", "vit_base_patch32_clip_224"]


@pytest.mark.parametrize("name", [*BY_HOOKS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_BY_HOOKS)])
def test_count_by_layers(name):
    size = (HIERARCHICAL | PLAIN)[name]
    model = on_meta(name, 7, 2, width="full", **options(name, size))
    count = cost(model, size)
    assert count.total == count_by_hooks(model, size)
    assert count.trunk > 0
    assert count.branches[0] == count.branches[1] > 0


def test_count_of_rotary_attention():
    """EVA uses the weights of its layers without calling the layers: each matrix of a block multiplies each token."""
    size, depth = 70, 4
    model = on_meta("eva02_tiny_patch14_224", 7, 2, width="full", image_size=size, depth=depth)
    tokens, channels = (size // 14) ** 2 + 1, model.branches[0].blocks[0].norm1.weight.numel()
    block = sum(weight.numel() for weight in model.branches[0].blocks[0].parameters() if weight.dim() == 2)
    block = tokens * block + 2 * tokens**2 * channels
    assert cost(model, size).branches == (block, block)
    assert cost(model, size).trunk == (depth - 1) * block + (tokens - 1) * 3 * 14 * 14 * channels


@pytest.mark.parametrize("head", ["cosine", "linear"])
def test_heads_are_counted(head):
    assert cost(on_meta("resnet20", 77, 2, head=head), 32).heads == (48 * 77, 48 * 77)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HIERARCHICAL | PLAIN if name not in BY_HOOKS + SLOW_BY_HOOKS])
def test_every_other_backbone_is_counted(name):
    size = (HIERARCHICAL | PLAIN)[name]
    count = cost(on_meta(name, 5, 2, width="full", **options(name, size)), size)
    assert count.trunk > 0
    assert count.branches[0] == count.branches[1] > 0


@pytest.mark.parametrize("name", ["resnet32", "swin_tiny_patch4_window7_224", "eva02_tiny_patch14_224"])
def test_counting_leaves_the_model_unchanged(name):
    size = (HIERARCHICAL | PLAIN)[name]
    settings = {"width": "full", **options(name, size)}
    model = create_model(name, 5, 2, **settings)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert cost(model, size) == cost(on_meta(name, 5, 2, **settings), size)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


# --- published counts and the original code ---


def test_published_counts_of_the_cifar_networks():
    count = cost(on_meta("resnet32", 100, 4), 32)
    single = cost(on_meta("resnet32", 100, 1, width="full", head="linear"), 32)
    assert f"{single.total / 1e6:.1f}" == "68.9"
    assert f"{count.trunk / 1e6:.1f}" == "24.0"
    assert f"{(count.branches[0] + count.heads[0]) / 1e6:.1f}" == "25.4"
    assert [f"{count.prefix(experts) / 1e6:.1f}" for experts in (2, 3, 4)] == ["74.9", "100.4", "125.8"]


@pytest.mark.parametrize(
    ("name", "classes", "single", "three"),
    [("resnext50_32x4d", 1000, 4.26, 6.08), ("resnet50", 8142, 4.14, 5.80)],
)
def test_published_counts_of_the_imagenet_networks(name, classes, single, three):
    """Up to one percent, because the published counts include batch norms."""
    full = cost(on_meta(name, classes, 1, width="full", head="linear"), 224).total
    assert full / 1e9 == pytest.approx(single, rel=0.01)
    assert cost(on_meta(name, classes, 3), 224).total / 1e9 == pytest.approx(three, rel=0.01)


def check(comparisons):
    for comparison in comparisons:
        # Only the rounding of the shares of images.
        assert abs(comparison.unexplained) < 1e-3, comparison


@pytest.mark.slow
@pytest.mark.parametrize("release", golden_flops.THOP)
@pytest.mark.parametrize("network", golden_flops.NETWORKS)
def test_differences_from_the_count_of_ride_are_explained(network, release):
    check(golden_flops.ride(release, network))


@pytest.mark.slow
@pytest.mark.parametrize("size", ["tiny", "small"])
def test_differences_from_the_count_of_ride_swin_are_explained(size):
    check(golden_flops.swin(size))


# --- the command ---


def test_a_recipe_is_planned_as_it_is_built(digits_run):
    planned = planned_architecture(digits_run.config)
    assert planned.pop("router") == router_options(digits_run.config.router)
    assert planned == digits_run.load_model()[1].architecture


@pytest.mark.parametrize(
    ("settings", "classes", "size"),
    [
        ({"data.name": "cifar10"}, 10, 32),
        ({"data.name": "cifar100", "data.image_size": 64}, 100, 64),
        ({"data.name": "imagenet-lt", "model.backbone": "resnet50"}, 1000, 224),
        ({"data.name": "inaturalist2018", "data.image_size": 160}, 8142, 160),
        ({"data.name": "places-lt", "model.backbone": "inception_next_base.sail_in1k_384"}, 365, 384),
    ],
)
def test_classes_and_image_size_without_data(settings, classes, size):
    planned = planned_architecture(longtail.load_recipe("digits-lt-ride", settings))
    assert (planned["num_classes"], planned["image_size"]) == (classes, size)


def test_flops_of_a_recipe(capsys):
    assert main(["flops", "cifar100-lt-ride", "--experts_used", "40.99,9.47,49.54"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for line in (
        "trunk 23,824 24.04 M 48.07 M 0.486",
        "all 3 experts 783,856 100.36 M 200.72 M 2.028",
        "router, 2 steps 1,615 1.63 k 3.26 k 0.000",
        "routed: 2.09 experts 785,471 77.09 M 154.19 M 1.558",
        "full width, 1 expert 469,904 68.87 M 137.74 M 1.392",
    ):
        assert line in out


def test_flops_of_a_recipe_with_settings(capsys):
    settings = ["--num_classes", "7", "--data.image_size", "32", "--model.num_experts", "1"]
    assert main(["flops", "folder-from-scratch", *settings]) == 0
    assert "resnet32, 1 expert, 7 classes, 32 x 32 pixels" in capsys.readouterr().out


def test_flops_of_a_run_equal_those_of_its_recipe(experts_run, capsys):
    tables = []
    for model in (experts_run.folder, experts_run.model_path, experts_run.config_path):
        assert main(["flops", str(model)]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] == tables[2]
    assert "8 x 8 pixels" in tables[0]


@pytest.mark.parametrize("change", [["--num_classes", "7"], ["--model.num_experts", "3"]])
def test_settings_do_not_change_a_trained_model(experts_run, capsys, change):
    assert main(["flops", str(experts_run.folder), *change]) == 2
    assert change[0] in capsys.readouterr().err


def test_router_and_neck_have_a_row():
    architecture = {"name": "swin_tiny_patch4_window7_224", "num_classes": 10, "num_experts": 2, "width": "narrow"}
    architecture["image_size"] = 112
    model = planned_model(architecture)
    table = cost_table(model, architecture, 112, [1, 1])
    assert any("no router" in note for note in table.notes)
    model.router = Router(2, 576, num_classes=10)
    table = cost_table(model, architecture, 112, [1, 1])
    assert {"router, 1 step", "neck", "routed: 1.50 experts"} <= {row[0] for row in table.rows}
    assert not any("no router" in note for note in table.notes)
