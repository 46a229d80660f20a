"""The router and its loss, against the original code and against slow versions of the definitions."""

from dataclasses import asdict
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import golden
from helpers.golden.networks import ROUTED_CASES, Case, distance, load
from helpers.golden.routers import TAGS, Routed, measure_routed
from helpers.networks import slow_except

from longtail.losses import router_loss, router_targets
from longtail.models.multi_expert import create_model, create_router
from longtail.models.router import Router
from longtail.runs.model_file import ModelMetadata, load_model_file, save_model
from longtail.utils.ensembles import partial_ensembles
from longtail.utils.errors import InputError
from longtail.utils.files import write_tensors

# Router outputs are small sums of many large terms.
SINGLE, ROUTER, GRADIENT = 1e-5, 1e-4, 1e-4


@cache
def measured(name: str) -> tuple[Case, Routed]:
    case = load(name)
    return case, measure_routed(case)


# ---- the original code ----


@pytest.fixture(params=slow_except(("cifar_resnet32ea_e3",), ROUTED_CASES))
def name(request) -> str:
    return request.param


@pytest.mark.parametrize("way", ["eval", "forceall"])
def test_experts_used(name, way):
    case, routed = measured(name)
    array = f"{way}_num_experts"
    assert np.array_equal(routed.values[array], case.outputs[array])
    if way == "eval":
        histogram = np.bincount(routed.values[array].squeeze(1), minlength=case.keys["args"]["num_experts"] + 1)[1:]
        assert histogram.tolist() == case.keys["experts_used_histogram"]
        assert np.count_nonzero(histogram) > 1


@pytest.mark.parametrize(
    "array",
    [
        *("eval_logits", "forceall_logits", "forceall_expert_logits", "forceall_expert_feats"),
        *("forceall_router_outputs", *(f"{tag}_{kind}" for tag, kind in product(TAGS, ("output", "router_outputs")))),
    ],
)
def test_outputs(name, array):
    case, routed = measured(name)
    tolerance = ROUTER if array.endswith("router_outputs") else SINGLE
    assert distance(routed.values[array], case.outputs[array]) < tolerance


@pytest.mark.parametrize("tag", TAGS)
def test_loss_and_gradient(name, tag):
    case, routed = measured(name)
    np.testing.assert_allclose(routed.values[f"loss_{tag}"], case.outputs[f"loss_{tag}"], rtol=SINGLE)
    norms = case.outputs[f"grad_norm_{tag}"]
    trained = [parameter in case.keys["trainable"] for parameter in case.keys["params"]]
    assert np.array_equal(norms >= 0, trained)
    np.testing.assert_allclose(routed.gradient_norms[tag], norms, rtol=GRADIENT)


def test_number_of_parameters(name):
    case, _ = measured(name)
    model = case.model()
    assert model.num_parameters == case.keys["num_params"]
    assert sum(parameter.numel() for parameter in model.router.parameters()) == case.keys["num_trainable"]


def test_small_error_in_the_router_is_detected():
    case, _ = measured("cifar_resnet32ea_e3")
    weight = "backbone.expert_help_pred_fc.weight"
    wrong = measure_routed(case._replace(original=case.original | {weight: case.original[weight] * 1.001}))
    array = "forceall_router_outputs"
    assert distance(wrong.values[array], case.outputs[array]) > ROUTER


# ---- slow versions ----


def random_outputs(images=7, experts=4, classes=6, features=5):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(images, experts, classes, generator=generator)
    return logits, torch.randn(images, experts, features, generator=generator)


def test_partial_ensembles():
    logits, _ = random_outputs()
    partial = partial_ensembles(logits)
    assert partial.shape == logits.shape
    for number in range(1, logits.shape[1] + 1):
        torch.testing.assert_close(partial[:, number - 1], logits[:, :number].mean(dim=1))


@pytest.mark.parametrize("shared", [True, False])
def test_router(shared):
    logits, features = random_outputs()
    router = Router(4, 5, 6, top_choices=3, hidden=2, shared=shared)
    assert len(router.output) == (1 if shared else 3)
    all_steps = router(logits, features)
    assert all_steps.shape == (7, 3)
    for image, step in product(range(7), range(3)):
        mean = logits[image, : step + 1].mean(dim=0)
        feature = features[image, step] / features[image, step].square().sum().sqrt()
        small = (router.hidden[step].weight @ feature + router.hidden[step].bias).clamp(min=0)
        inputs = torch.tensor([*sorted(mean.tolist(), reverse=True)[:3], *small.tolist()])
        last = router.output[0 if shared else step]
        torch.testing.assert_close(all_steps[image, step], (last.weight[0] * inputs).sum() + last.bias[0])
        one_step = router.step(step, features[image : image + 1, step], mean[None])
        torch.testing.assert_close(one_step, all_steps[image, step : step + 1])


@pytest.mark.parametrize("shared", [True, False])
def test_router_computes_in_full_precision_under_autocast(shared):
    outputs = random_outputs()
    torch.manual_seed(0)
    router = Router(4, 5, 6, top_choices=3, shared=shared)
    expected = router(*outputs)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(expected, torch.ones(1, 3)).dtype == torch.bfloat16
        assert torch.equal(router(*outputs), expected)


def slow_targets(logits, labels):
    images, experts, _ = logits.shape
    targets = torch.zeros(images, experts - 1)
    for image in range(images):
        correct = [int(logits[image, : e + 1].mean(dim=0).argmax()) == int(labels[image]) for e in range(experts)]
        for step in range(experts - 1):
            targets[image, step] = float(not correct[step] and any(correct[step + 1 :]))
    return targets


@pytest.mark.parametrize("experts", [2, 3, 6])
def test_targets(experts):
    logits, _ = random_outputs(images=300, experts=experts, classes=3)
    labels = torch.randint(3, (300,), generator=torch.Generator().manual_seed(1))
    targets = router_targets(logits, labels)
    assert torch.equal(targets, slow_targets(logits, labels))
    assert 0 < targets.mean() < 1


def test_targets_by_hand():
    # The first expert is correct, wrong, wrong and wrong; the ensemble of both is wrong, correct, wrong and correct.
    first = [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    second = [[0.0, 2.0], [0.0, 2.0], [0.0, 0.5], [0.0, 2.0]]
    logits = torch.tensor([first, second]).transpose(0, 1)
    assert router_targets(logits, torch.tensor([0, 1, 1, 1])).tolist() == [[0], [1], [0], [1]]


def test_loss():
    generator = torch.Generator().manual_seed(0)
    router_logits = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    targets = torch.randint(2, (9, 3), generator=generator).double()
    p = router_logits.sigmoid()
    slow = -(7 * targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    torch.testing.assert_close(router_loss(router_logits, targets, positive_weight=7), slow)


# ---- construction ----


def test_number_of_choices_is_at_most_the_number_of_classes():
    router = Router(2, 5, 6)
    assert router.top_choices == 6
    assert router(*random_outputs(experts=2)).shape == (7, 1)


def test_initial_weights():
    torch.manual_seed(0)
    normal, default = (Router(2, 1000, 1000, top_choices=800, hidden=200, kaiming=kaiming) for kaiming in (True, False))
    for router, factor in ((normal, 2**0.5), (default, 3**-0.5)):  # uniform within 1 / sqrt(n)
        for layer in (router.hidden[0], router.output[0]):
            assert layer.weight.std().item() == pytest.approx(factor / 1000**0.5, rel=0.1)
    assert normal.hidden[0].weight.max() > 1.01 * 1000**-0.5 >= default.hidden[0].weight.max()


def test_initial_weights_are_kaiming_normal_for_cifar_networks():
    small, large = (create_model(name, 50, 2, router={"hidden": 200}) for name in ("resnet20", "resnet10"))
    for model, factor in ((small, 2**0.5), (large, 3**-0.5)):
        weight = model.router.hidden[0].weight
        assert weight.std().item() == pytest.approx(factor / model.num_features**0.5, rel=0.1)


def test_model_with_router():
    model = create_model("resnet20", 7, 3, router={"top_choices": 4, "shared": False})
    assert {name.split(".")[0] for name in model.state_dict()} == {"trunk", "branches", "heads", "router"}
    shapes = {name: tuple(value.shape) for name, value in model.router.state_dict().items() if "weight" in name}
    assert shapes == {f"hidden.{i}.weight": (16, 48) for i in range(2)} | {
        f"output.{i}.weight": (1, 20) for i in range(2)
    }


def test_router_can_be_added_to_a_model():
    torch.manual_seed(0)
    model = create_model("resnet20", 7, 3)
    names = list(model.state_dict())
    model.router = create_router(model, top_choices=4)
    assert list(model.state_dict())[: len(names)] == names
    assert model.router.output[0].in_features == 20


@pytest.mark.parametrize(
    ("experts", "options", "message"),
    [
        (1, {}, "num_experts is 1; .* at least 2"),
        (2, {"top_choices": 0}, "top_choices is 0"),
        (2, {"hidden": 0}, "hidden 0"),
        (2, {"choices": 3}, "unexpected keyword argument 'choices'"),
    ],
)
def test_invalid_options(experts, options, message):
    with pytest.raises(InputError, match=message) as error:
        create_model("resnet20", 7, experts, router=options)
    assert "\n" not in str(error.value)


def metadata(**architecture) -> ModelMetadata:
    return ModelMetadata(architecture, ("a", "b", "c"), (3, 2, 1), 32, 32, (0.5,) * 3, (0.5,) * 3)


def test_router_is_saved_with_the_model(tmp_path):
    described = metadata(
        name="resnet20", num_classes=3, num_experts=2, router={"top_choices": 2, "hidden": 4, "shared": True}
    )
    model = create_model(**described.architecture).eval()
    save_model(tmp_path / "model", model, described)
    loaded, read = load_model_file(tmp_path / "model")
    assert read.architecture == {name: described.architecture[name] for name in read.architecture}
    assert loaded.router.options == {"top_choices": 2, "hidden": 4, "shared": True, "threshold": 0.5}
    images = torch.randn(5, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(model.route(images), loaded.route(images), strict=True))


@pytest.mark.parametrize("in_metadata", [True, False])
def test_files_whose_metadata_and_weights_disagree_about_a_router(in_metadata, tmp_path):
    architectures = [{"name": "resnet20", "num_classes": 3, "num_experts": 2}]
    architectures.append({**architectures[0], "router": {}})
    weights = create_model(**architectures[not in_metadata]).state_dict()
    write_tensors(tmp_path / "model", weights, asdict(metadata(**architectures[in_metadata])))
    with pytest.raises(InputError, match=r"do not match.*router"):
        load_model_file(tmp_path / "model")


def test_golden_values_of_a_router_are_in_the_repository():
    assert golden.path("models/cifar_resnet32ea_e3/outputs.npz").is_file()
