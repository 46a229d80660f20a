"""The exported graphs compute what `MultiExpert.route` computes, in batches of all sizes and with all thresholds."""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from helpers.exported import CLASSES, metadata, normalised, pixels, small_model, source
from helpers.networks import HIERARCHICAL, PLAIN, options, slow_except
from torch import nn

from longtail.interop.export import REGISTRY, Source
from longtail.interop.export_model import describe
from longtail.interop.onnx.runtime import OnnxFile, OnnxParts
from longtail.models.multi_expert import MultiExpert, create_model

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from longtail.interop.onnx.join import as_parts, join  # noqa: E402  # they need the extra
from longtail.interop.onnx.stages import export_stages  # noqa: E402

MODELS = {
    "three experts": {"average": "probabilities", "temperature": 1.7, "head": "linear"},
    "two experts": {"num_experts": 2},
    "no router": {"num_experts": 2, "routed": False, "temperature": 0.4},
    "three experts, mean logits": {},
    "no router, mean probabilities": {"routed": False, "average": "probabilities"},
    "one expert": {"num_experts": 1, "routed": False},
}


class Files(NamedTuple):
    """The exported files of one model, and PyTorch's."""

    model: MultiExpert
    content: bytes
    parts: dict[str, bytes]

    def run(self, images, threshold=None):
        return OnnxFile(self.content).run(images, threshold)

    def run_parts(self, images, threshold=None):
        return OnnxParts(self.parts).run(images, threshold)


def export(model):
    facts = source(model)
    stages = export_stages(model, facts.metadata)
    parts = as_parts(stages, facts.properties)
    contents = {name: part.SerializeToString() for name, part in parts.items()}
    return Files(model, join(stages, facts.properties).SerializeToString(), contents)


@pytest.fixture(scope="module", params=slow_except(["three experts", "no router"], MODELS))
def exported(request):
    return export(small_model(**MODELS[request.param]))


@pytest.fixture(scope="module")
def routed():
    return export(small_model(**MODELS["two experts"]))


def session(content):
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"])


def expected(model, images, threshold=None):
    """Logits and number of experts from PyTorch."""
    with torch.no_grad():
        if model.router is None:
            return model.predict_logits(normalised(images)).numpy(), np.full(len(images), model.num_experts)
        output = model.route(normalised(images), threshold)
    return output.logits.numpy(), output.experts_used.numpy()


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_outputs_equal_those_of_pytorch(exported, size):
    model, images = exported.model, pixels(size)
    logits, probabilities, used = session(exported.content).run(None, {"images": images})
    right_logits, right_used = expected(model, images)
    np.testing.assert_allclose(logits, right_logits, atol=2e-5)
    np.testing.assert_array_equal(used, right_used)
    softmax = torch.from_numpy(right_logits / model.temperature).softmax(dim=1)
    np.testing.assert_allclose(probabilities, softmax, atol=1e-5)
    if model.router is not None and size == 64:
        assert set(used) == set(range(1, model.num_experts + 1))  # otherwise the test sees nothing


def test_parts_compute_the_same(exported):
    assert len(exported.parts) == (1 if exported.model.router is None else exported.model.num_experts)
    for size in (1, 64):
        for ours, theirs in zip(exported.run_parts(pixels(size)), exported.run(pixels(size)), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(("threshold", "used"), [(-1.0, 2), (2.0, 1)])
def test_thresholds_are_chosen_at_run_time(routed, threshold, used):
    logits, _ = expected(routed.model, pixels(7), threshold)
    for run in (routed.run, routed.run_parts):
        outputs = run(pixels(7), threshold)
        assert set(outputs.experts_used) == {used}
        np.testing.assert_allclose(outputs.logits, logits, atol=2e-5)
    feed = {"images": pixels(7), "thresholds": np.float32([threshold])}
    assert set(session(routed.content).run(["experts_used"], feed)[0]) == {used}


@pytest.mark.slow
def test_small_probabilities_are_not_lost():
    """The logarithm of exp(-200) + exp(-200) is not that of 0."""
    model = small_model(2, average="probabilities", head="linear")
    for head in model.heads:
        nn.init.constant_(head.bias, 0)
        head.bias.data[0] = 200
    logits, _ = expected(model, pixels(2), -1.0)
    assert logits.min() < -150
    outputs = export(model).run(pixels(2), -1.0)
    np.testing.assert_allclose(outputs.logits, logits, atol=1e-4)


def test_skipped_experts_are_not_computed(routed):
    """The nodes and the weights of an expert lie inside of the branch of an If."""
    graph = onnx.load_from_string(routed.content).graph
    levels = []
    while graph is not None:
        inner = [node for node in graph.node if node.op_type == "If"]
        convolutions = [node.input[1] for node in graph.node if node.op_type == "Conv"]
        levels.append(len(convolutions))
        assert set(convolutions) <= {weight.name for weight in graph.initializer}
        branches = {attribute.name: attribute.g for node in inner for attribute in node.attribute}
        graph = branches.get("then_branch")
        assert all(node.op_type == "Identity" for node in branches["else_branch"].node) if branches else True
    assert levels == [2, 1]  # trunk and first expert, second


def test_file_is_valid_and_describes_itself(routed):
    graph = onnx.load_from_string(routed.content)
    onnx.checker.check_model(graph, full_check=True)
    for content in (routed.content, *routed.parts.values()):
        assert b".py" not in content  # the exporter writes paths of this machine
    facts = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert facts["class_names"] == list(CLASSES)
    assert (facts["image_size"], facts["resize"], facts["interpolation"]) == (8, 9, "bilinear")
    assert facts["thresholds"] == routed.model.router.threshold
    assert facts["macs"][0] < facts["macs"][1]
    opened = session(routed.content)
    assert [(value.name, value.type, value.shape) for value in opened.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", 3, 8, 8])
    ]
    (thresholds,) = opened.get_overridable_initializers()
    assert (thresholds.name, thresholds.shape) == ("thresholds", [1])
    assert [(value.name, value.shape[1:]) for value in opened.get_outputs()] == [
        ("logits", [6]), ("probabilities", [6]), ("experts_used", [])
    ]  # fmt: skip


def test_the_model_is_not_changed(routed):
    model, fresh = routed.model, small_model(**MODELS["two experts"])
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert not model.training


BACKBONES = (
    *("resnet32", "resnet50", "convnext_atto", "tf_efficientnet_lite0", "swin_tiny_patch4_window7_224"),
    "vit_tiny_patch16_224",
)
"""One of each kind; benchmarks/export.py has more, at full size"""
SIZES = HIERARCHICAL | PLAIN | {"tf_efficientnet_lite0": 64}


@pytest.mark.slow
@pytest.mark.parametrize("name", BACKBONES)
def test_backbones(name):
    torch.manual_seed(0)
    size = SIZES[name]
    chosen = {"image_size": size} | options(name, size)
    model = create_model(name, 6, 2, width="full", router={}, average="probabilities", **chosen).eval()
    images = np.random.default_rng(0).integers(0, 256, (3, 3, size, size), dtype=np.uint8)
    with torch.no_grad():
        scores = model.router(*model(normalised(images))[:2]).sigmoid()[:, 0].sort().values
    model.router.threshold = float(scores[:2].mean())
    facts = metadata(2, image_size=size, resize=size)
    file = REGISTRY["onnx"].build(Source(model, facts, describe(model, facts)))
    for batch in (images[:1], images):
        outputs = file.run(batch, None)
        logits, used = expected(model, batch)
        np.testing.assert_allclose(outputs.logits, logits, atol=1e-4)
        np.testing.assert_array_equal(outputs.experts_used, used)
    assert set(used) == {1, 2}
