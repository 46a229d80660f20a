"""Our networks against what the original code computes with the same weights, value by value."""

from functools import cache

import numpy as np
import pytest
import torch
from golden.networks import CIFAR_CASES, Measured, distance, load, measure, our_names, weights

from longtail.errors import InputError
from longtail.models.experts import create_model
from longtail.models.official import convert_state_dict

# The float32 noise of the original itself (NOTES.md: float32_minus_float64) is below 1e-6 of the largest value. Only
# gradients have more, where rounding decides on which side of a ReLU's corner a sum falls.
SINGLE, SINGLE_GRADIENT, DOUBLE = 1e-5, 1e-2, 1e-9

cached = cache(load)


@pytest.fixture(params=CIFAR_CASES)
def name(request) -> str:
    return request.param


@cache
def measured(name: str, mode: str, dtype: torch.dtype = torch.float32) -> Measured:
    return measure(cached(name), mode, dtype)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs(name, mode):
    outputs = cached(name).outputs
    for array in (f"{mode}_logits", f"{mode}_expert_logits", f"{mode}_expert_feats", f"loss_{mode}"):
        ours, theirs = measured(name, mode).values[array], outputs[array]
        assert distance(ours, theirs) < SINGLE, array
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * np.abs(theirs).max(), err_msg=array)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_outputs_in_double_precision(name, mode):
    outputs = cached(name).outputs
    for array in (f"{mode}_logits", f"loss_{mode}"):
        ours = measured(name, mode, torch.float64).values[array]
        assert distance(ours, outputs[f"{array}_f64"]) < DOUBLE, array


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", [name for name in CIFAR_CASES if "use02" not in name and "c10" not in name])
def test_gradient_of_every_parameter(name, mode):
    outputs = cached(name).outputs
    for suffix, dtype, tolerance in (("", torch.float32, SINGLE_GRADIENT), ("_f64", torch.float64, DOUBLE)):
        norms = outputs[f"grad_norm_{mode}{suffix}"]
        assert (norms > 0).all()
        np.testing.assert_allclose(measured(name, mode, dtype).gradient_norms, norms, rtol=tolerance)


@pytest.mark.parametrize("name", ["cifar_resnet32_e1_rd0_un0", "cifar_resnet32_e3_rd1_un1"])
def test_running_statistics_after_a_training_pass(name):
    theirs = cached(name).outputs["train_bn_buffers_after"]
    ours = measured(name, "train").values["train_bn_buffers_after"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_parameters(name):
    case = cached(name)
    model = case.model()
    assert sum(p.numel() for p in model.parameters()) == case.keys["num_params"]
    assert sorted(our_names(case.keys["params"])) == sorted(own for own, _ in model.named_parameters())
    assert len(model.state_dict()) == case.keys["num_state_entries"]


def test_switched_off_experts_are_not_run():
    case = cached("cifar_resnet32_e3_rd1_un1_use02")
    model = case.model().eval()
    model.branches[1] = torch.nn.Module()  # has no forward
    assert case.experts == [0, 2]
    with torch.no_grad():
        logits = model(case.images, case.experts).logits.transpose(0, 1)
    assert distance(logits.numpy(), case.outputs["eval_expert_logits"]) < SINGLE


def test_a_wrong_weight_is_noticed():
    """The comparison sees an error of one part in a thousand in one of a hundred layers."""
    case = cached("cifar_resnet32_e1_rd0_un0")
    official = dict(case.official)
    official["backbone.layer3.2.conv2.weight"] = official["backbone.layer3.2.conv2.weight"] * 1.001
    wrong = measure(case._replace(official=official), "eval")
    assert distance(wrong.values["eval_logits"], case.outputs["eval_logits"]) > SINGLE


def test_the_recipe_of_the_weights_is_checked():
    keys = cached("cifar_resnet32_e1_rd0_un0").keys
    with pytest.raises(AssertionError, match="not the weights"):
        weights(keys | {"state_dict": keys["state_dict"][1:]})


def test_weights_have_the_stored_first_values():
    case = cached("cifar_resnet32_e3_rd1_un1")
    assert len(case.keys["weight_probe_first3"]) == 3
    for name, first in case.keys["weight_probe_first3"].items():
        assert case.official[name].flatten()[:3].tolist() == first


def test_module_prefix():
    official = cached("cifar_resnet32_e3_rd1_un1").official
    plain = convert_state_dict(official)
    parallel = convert_state_dict({f"module.{name}": value for name, value in official.items()})
    assert parallel.keys() == plain.keys()
    assert all(torch.equal(parallel[name], plain[name]) for name in plain)


def test_classifiers():
    """A cosine classifier is turned, a linear one is not; even where it is square and shapes would not tell."""
    square = torch.arange(9.0).reshape(3, 3)
    cosine = convert_state_dict({"backbone.linears.1.weight": square})
    linear = convert_state_dict({"backbone.linear.weight": square, "backbone.linear.bias": torch.zeros(3)})
    torch.testing.assert_close(cosine["heads.1.weight"], square.T)
    torch.testing.assert_close(linear["heads.0.weight"], square)


def test_names_that_are_not_theirs_are_all_listed():
    names = ["backbone.conv1.weight", "backbone.layer4.0.conv1.weight", "fc.weight", "backbone.linears.x.weight"]
    with pytest.raises(InputError) as error:
        convert_state_dict({name: torch.zeros(1, 1) for name in names})
    assert "backbone.conv1.weight" not in str(error.value)
    assert all(name in str(error.value) for name in names[1:])


@pytest.mark.parametrize("depth", [20, 32, 44, 56, 110])
@pytest.mark.parametrize("experts", [1, 2])
def test_every_name_of_ours_can_come_from_theirs(depth, experts):
    """A checkpoint of any depth, its names written back the way the original has them, loads strictly."""
    model = create_model(f"resnet{depth}", 5, experts)
    single = experts == 1
    official = {}
    for name, value in model.state_dict().items():
        part, *rest = name.split(".")
        if part == "trunk":
            theirs = ".".join(rest)
        elif part == "branches":
            e, layer, *inner = rest
            theirs = ".".join([layer, *inner] if single else [f"{layer}s", e, *inner])
        else:
            value, theirs = value.T, "linear.weight" if single else f"linears.{rest[0]}.weight"
        official[f"backbone.{theirs}"] = value
    converted = convert_state_dict(official)
    assert all(torch.equal(converted[name], value) for name, value in model.state_dict().items())
    model.load_state_dict(converted, strict=True)
