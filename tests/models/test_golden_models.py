"""Outputs, losses and gradients of our networks equal those of the original code with the same weights."""

from functools import cache

import numpy as np
import pytest
import torch
from helpers import golden
from helpers.golden.networks import (
    CIFAR_CASES,
    COUNTED_CASES,
    LARGE_CASES,
    RESNET10_CASES,
    ROUTED_CASES,
    RUN_CASES,
    SLOW_CASES,
    Case,
    Measured,
    architecture,
    distance,
    load,
    measure,
    our_names,
    shapes,
    weights,
)
from helpers.networks import slow_except

from longtail.interop.original.architecture import infer_architecture, load_original
from longtail.interop.original.names import convert_state_dict
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import create_model
from longtail.utils.errors import InputError

# The float32 error of the original (NOTES.md: float32_minus_float64) is below 1e-6 of the largest value. That of
# gradients is larger, because rounding can change the sign of a ReLU's input.
SINGLE, SINGLE_GRADIENT, DOUBLE = 1e-5, 1e-2, 1e-9

FAST = ("cifar_resnet32_e1_rd0_un0", "cifar_resnet32_e3_rd1_un1", "imagenet_resnet10_e3_rd1_un1")
"""Networks of the default tests; the first two are in the repository"""

cached = cache(load)


@pytest.fixture(params=slow_except(FAST, CIFAR_CASES + RESNET10_CASES))
def name(request) -> str:
    return request.param


@cache
def measured(name: str, mode: str, dtype: torch.dtype = torch.float32) -> Measured:
    return measure(cached(name), mode, dtype)


def assert_same_outputs(case: Case, mode: str, values: dict[str, np.ndarray]) -> None:
    arrays = [f"{mode}_{kind}" for kind in ("logits", "expert_logits", "expert_feats")]
    for array in (*arrays, *{f"loss_{mode}"} & set(case.outputs)):
        ours, expected, tolerance = values[array], case.outputs[array], case.tolerance(array, SINGLE)
        assert distance(ours, expected) < tolerance, array
        # Small values have the rounding errors of large sums, which differ between processors.
        absolute = tolerance / 4 * np.abs(expected).max()
        np.testing.assert_allclose(ours, expected, rtol=10 * tolerance, atol=absolute, err_msg=array)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs(name, mode):
    assert_same_outputs(cached(name), mode, measured(name, mode).values)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_CASES + SLOW_CASES)
def test_large_networks(name):
    """Outputs in float32; loss and gradients in float64."""
    case = load(name)  # takes seconds
    for mode in ("eval", "train"):
        assert_same_outputs(case, mode, measure(case, mode, gradients=False).values)
    ours, loss = measure(case, "train", torch.float64), case.outputs["loss_train_f64"]
    assert distance(ours.values["loss_train"], loss) < DOUBLE
    if "grad_norm_train_f64" in case.outputs:
        np.testing.assert_allclose(ours.gradient_norms, case.outputs["grad_norm_train_f64"], rtol=1e-6)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    "name", slow_except(FAST, [*CIFAR_CASES, "imagenet_resnet10_e1_rd1_un1", "imagenet_resnet10_e3_share3"])
)
def test_outputs_in_double_precision(name, mode):
    outputs = cached(name).outputs
    stored = [array for array in (f"{mode}_logits", f"loss_{mode}") if f"{array}_f64" in outputs]
    assert stored
    for array in stored:
        ours = measured(name, mode, torch.float64).values[array]
        assert distance(ours, outputs[f"{array}_f64"]) < DOUBLE, array


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    "name", slow_except(FAST, [name for name in CIFAR_CASES if "use02" not in name and "c10" not in name])
)
def test_gradient_of_every_parameter(name, mode):
    outputs = cached(name).outputs
    for suffix, dtype, tolerance in (("", torch.float32, SINGLE_GRADIENT), ("_f64", torch.float64, DOUBLE)):
        norms = outputs[f"grad_norm_{mode}{suffix}"]
        assert (norms > 0).all()
        np.testing.assert_allclose(measured(name, mode, dtype).gradient_norms, norms, rtol=tolerance)


@pytest.mark.parametrize("name", ["cifar_resnet32_e1_rd0_un0", "cifar_resnet32_e3_rd1_un1"])
def test_running_statistics_after_a_training_pass(name):
    expected = cached(name).outputs["train_bn_buffers_after"]
    ours = measured(name, "train").values["train_bn_buffers_after"]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


EVERY_CASE = (*RUN_CASES, *COUNTED_CASES, *ROUTED_CASES)


@pytest.mark.parametrize("name", slow_except((*FAST, "cifar_resnet32ea_e3", "swin_tiny_e2_ride"), EVERY_CASE))
def test_names_and_shapes(name):
    """The architecture of a checkpoint is inferred correctly, and our network has the same tensors."""
    keys, original = shapes(name)
    assert infer_architecture(original) == architecture(keys)
    with skip_init(), torch.device("meta"):
        model = create_model(**infer_architecture(original))
    expected = {key: value.shape for key, value in convert_state_dict(original).items()}
    assert expected == {key: value.shape for key, value in model.state_dict().items()}
    assert model.num_parameters == keys["num_params"]
    stored = [key for key in original if not key.endswith(("relative_position_index", "attn_mask"))]
    assert len(expected) == len(stored)
    if "params" in keys:
        assert sorted(our_names(keys["params"])) == sorted(parameter for parameter, _ in model.named_parameters())


def test_checkpoint_without_a_router():
    assert "router" not in infer_architecture(cached("cifar_resnet32_e3_rd1_un1").original)


def test_incomplete_router_is_an_error():
    part = {"backbone.expert_help_pred_hidden_fcs.0.weight": torch.zeros(16, 48)}
    with pytest.raises(InputError, match=r"router\.hidden\.0\.weight"):
        load_original(cached("cifar_resnet32_e3_rd1_un1").original | part)


@pytest.mark.skipif(golden.ROOT == golden.SMALL, reason=f"{golden.FULL} is absent")
def test_every_network_is_compared():
    folders = {folder.name for folder in (golden.ROOT / "models").iterdir()}
    assert folders == set(EVERY_CASE)


def test_experts_that_are_not_chosen_do_not_run():
    case = cached("cifar_resnet32_e3_rd1_un1_use02")
    model = case.model().eval()
    model.branches[1] = torch.nn.Module()  # has no forward
    assert case.experts == [0, 2]
    with torch.no_grad():
        logits = model(case.images, case.experts).logits.transpose(0, 1)
    assert distance(logits.numpy(), case.outputs["eval_expert_logits"]) < SINGLE


def test_comparison_finds_a_wrong_weight():
    """Shows that the tests above can fail: weights of one layer are wrong by 0.1%."""
    case = cached("cifar_resnet32_e1_rd0_un0")
    original = dict(case.original)
    original["backbone.layer3.2.conv2.weight"] = original["backbone.layer3.2.conv2.weight"] * 1.001
    wrong = measure(case._replace(original=original), "eval")
    assert distance(wrong.values["eval_logits"], case.outputs["eval_logits"]) > SINGLE


def test_checksum_of_the_weights():
    keys = cached("cifar_resnet32_e1_rd0_un0").keys
    with pytest.raises(AssertionError, match="weights"):
        weights(keys | {"state_dict": keys["state_dict"][1:]})


def test_weights_have_the_stored_first_values():
    case = cached("cifar_resnet32_e3_rd1_un1")
    assert len(case.keys["weight_probe_first3"]) == 3
    for name, first in case.keys["weight_probe_first3"].items():
        assert case.original[name].flatten()[:3].tolist() == first


def test_prefix_of_data_parallel():
    original = cached("cifar_resnet32_e3_rd1_un1").original
    plain = convert_state_dict(original)
    parallel = convert_state_dict({f"module.{name}": value for name, value in original.items()})
    assert parallel.keys() == plain.keys()
    assert all(torch.equal(parallel[name], plain[name]) for name in plain)


def test_only_cosine_classifiers_are_transposed():
    """Also if the weights are square."""
    square = torch.arange(9.0).reshape(3, 3)
    cosine = convert_state_dict({"backbone.linears.1.weight": square})
    linear = convert_state_dict({"backbone.linear.weight": square, "backbone.linear.bias": torch.zeros(3)})
    torch.testing.assert_close(cosine["heads.1.weight"], square.T)
    torch.testing.assert_close(linear["heads.0.weight"], square)


def test_unknown_names_are_listed():
    names = ["backbone.conv1.weight", "backbone.layer4x.0.conv1.weight", "fc.weight", "backbone.linears.x.weight"]
    with pytest.raises(InputError) as error:
        convert_state_dict({name: torch.zeros(1, 1) for name in names})
    assert "backbone.conv1.weight" not in str(error.value)
    assert all(name in str(error.value) for name in names[1:])


def test_list_of_unknown_names_is_shortened():
    with pytest.raises(InputError, match="and 5 more") as error:
        convert_state_dict({f"other.{number}": torch.zeros(1) for number in range(25)})
    assert str(error.value).count("other.") == 20


def test_missing_unknown_and_wrong_tensors_are_listed():
    original = dict(cached("cifar_resnet32_e3_rd1_un1").original)
    original["backbone.layer3s.1.2.conv1.weight"] = torch.zeros(48, 47, 3, 3)
    original["backbone.layer2s.0.7.conv2.weight"] = torch.zeros(1)
    del original["backbone.bn1.bias"]
    with pytest.raises(InputError) as error:
        load_original(original)
    for fact in (
        "resnet32",
        "3 expert",
        "trunk.bn1.bias is missing",
        "branches.0.layer2.7.conv2.weight",
        "branches.1.layer3.2.conv1.weight is (48, 47, 3, 3) and not (48, 48, 3, 3)",
    ):
        assert fact in str(error.value)


@pytest.mark.parametrize(
    ("keep", "fact"),
    [
        (lambda name: "linears" not in name, "heads.0.weight"),
        (lambda name: "layer2s" not in name, "stages"),
        (lambda name: "layer2s.0.0.conv1" not in name, "blocks"),
        (lambda name: "linears" in name, "stages"),
    ],
)
def test_incomplete_checkpoints_are_errors(keep, fact):
    original = cached("cifar_resnet32_e3_rd1_un1").original
    with pytest.raises(InputError, match=fact):
        load_original({name: value for name, value in original.items() if keep(name)})


@pytest.mark.parametrize("depth", slow_except((20, 32), (20, 32, 44, 56, 110)))
@pytest.mark.parametrize("experts", [1, 2])
def test_names_of_every_depth(depth, experts):
    """A state dict with the original's names is converted back to the same names."""
    model = create_model(f"resnet{depth}", 5, experts)
    single = experts == 1
    original = {}
    for name, value in model.state_dict().items():
        module, *rest = name.split(".")
        if module == "trunk":
            original_name = ".".join(rest)
        elif module == "branches":
            e, layer, *inner = rest
            original_name = ".".join([layer, *inner] if single else [f"{layer}s", e, *inner])
        else:
            value, original_name = value.T, "linear.weight" if single else f"linears.{rest[0]}.weight"
        original[f"backbone.{original_name}"] = value
    converted = convert_state_dict(original)
    assert all(torch.equal(converted[name], value) for name, value in model.state_dict().items())
    model.load_state_dict(converted, strict=True)
