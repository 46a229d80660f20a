"""Joins the graphs of the experts to one graph in which the experts that the router skips are not computed.

Letters in shapes: B images, E experts, C classes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, compose, helper, numpy_helper

from longtail.interop.onnx.layout import (
    BEFORE,
    EXPERT_FILE,
    EXPERTS_USED,
    FIRST_FILE,
    IMAGES,
    LOGITS,
    PROBABILITIES,
    SCORE,
    SHARED,
    SUMS,
    THRESHOLDS,
)
from longtail.interop.onnx.metadata import OnnxMetadata
from longtail.interop.onnx.stages import Stage

IR_VERSION = 10
"""Of the file; older versions of ONNX Runtime refuse newer ones"""


class _Piece(NamedTuple):
    """Nodes, and the names of logits and numbers of experts that they compute."""

    nodes: list[NodeProto]
    logits: str
    used: str


def join(stages: Sequence[Stage], metadata: OnnxMetadata) -> ModelProto:
    """Returns a model: `IMAGES` and `THRESHOLDS` -> `LOGITS`, `PROBABILITIES` and `EXPERTS_USED`.

    After each expert, an ``If`` asks whether any image continues. Its branch gathers these images, runs the next expert
    on them, and writes their results over those so far. The weights of an expert lie inside of its branch: outside,
    ONNX Runtime does not optimise its convolutions.

    Args:
        stages: graphs of the experts, or one graph of all of them.
        metadata: of the file. Its thresholds are the default of their input; without a router there is no such input.
    """
    num_experts = metadata.num_experts
    first = stages[0].graph
    (pixels,) = first.graph.input
    classes = first.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    body, output_names = _nodes(first.graph, "expert_1/" if len(stages) > 1 else "model/", {IMAGES: IMAGES})
    piece = _continue(stages, 0, output_names, classes) if len(stages) > 1 else _all(output_names, num_experts)
    nodes = [
        *body.node,
        *piece.nodes,
        helper.make_node("Identity", [piece.logits], [LOGITS]),
        helper.make_node("Identity", [piece.used], [EXPERTS_USED]),
        helper.make_node("Div", [piece.logits, "temperature"], ["scaled_logits"]),
        helper.make_node("Softmax", ["scaled_logits"], [PROBABILITIES], axis=1),
    ]
    constants = {
        "temperature": np.array(metadata.temperature, dtype=np.float32),
        "axis_0": np.array([0]),
        "axis_1": np.array([1]),
        "zero": np.array(0),
        **{f"number_{number}": np.array(number) for number in range(num_experts + 1)},
    }
    inputs, batch = [pixels], pixels.type.tensor_type.shape.dim[0].dim_param
    if len(stages) > 1:
        constants[THRESHOLDS] = np.array(metadata.thresholds, dtype=np.float32)
        inputs.append(helper.make_tensor_value_info(THRESHOLDS, TensorProto.FLOAT, [num_experts - 1]))
    outputs = [
        helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, [batch, classes]),
        helper.make_tensor_value_info(PROBABILITIES, TensorProto.FLOAT, [batch, classes]),
        helper.make_tensor_value_info(EXPERTS_USED, TensorProto.INT64, [batch]),
    ]
    used = {name for node in _all_nodes(nodes) for name in node.input}
    small = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    weights = [*body.initializer, *small]
    graph = helper.make_graph(nodes, "longtail", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=_opsets(stages), ir_version=IR_VERSION, producer_name="longtail")
    helper.set_model_props(model, metadata.properties())
    return model


def as_parts(stages: Sequence[Stage], metadata: OnnxMetadata) -> dict[str, ModelProto]:
    """Returns the graphs of the experts by the names of their files; the metadata are in the first."""
    names = [FIRST_FILE, *(EXPERT_FILE.format(number) for number in range(2, len(stages) + 1))]
    parts = {}
    for name, stage in zip(names, stages, strict=True):
        parts[name] = ModelProto()
        parts[name].CopyFrom(stage.graph)
        parts[name].ir_version = IR_VERSION
    helper.set_model_props(parts[FIRST_FILE], metadata.properties())
    return parts


def _nodes(graph: GraphProto, prefix: str, inputs: Mapping[str, str]) -> tuple[GraphProto, dict[str, str]]:
    """Copies a graph, puts a prefix before all names, names its inputs as given, and returns its outputs' names too."""
    copy = GraphProto()
    copy.CopyFrom(graph)
    del copy.value_info[:]  # the batch of a branch has another size
    copy = compose.add_prefix_graph(copy, prefix)
    new_names = {prefix + name: new for name, new in inputs.items()}
    nodes = list(copy.node)
    del copy.node[:]
    for node in nodes:  # in the order of computation
        node.input[:] = [new_names.get(name, name) for name in node.input]
        if node.op_type == "Identity":
            new_names[node.output[0]] = node.input[0]
        else:
            copy.node.append(node)
    return copy, {value.name: new_names.get(prefix + value.name, prefix + value.name) for value in graph.output}


def _continue(stages: Sequence[Stage], number: int, names: Mapping[str, str], classes: int) -> _Piece:
    """The decision after an expert (from 0), and all that follows. ``names`` are those of the expert's outputs."""
    tag = f"step_{number + 1}/"
    so_far, score = names[LOGITS], names[SCORE]
    nodes = [
        helper.make_node("Gather", [THRESHOLDS, f"number_{number}"], [f"{tag}threshold"]),
        helper.make_node("Greater", [score, f"{tag}threshold"], [f"{tag}continues"]),
        helper.make_node("NonZero", [f"{tag}continues"], [f"{tag}positions"]),
        helper.make_node("Squeeze", [f"{tag}positions", "axis_0"], [f"{tag}kept"]),
        helper.make_node("Size", [f"{tag}kept"], [f"{tag}number"]),
        helper.make_node("Greater", [f"{tag}number", "zero"], [f"{tag}any"]),
        helper.make_node("Shape", [score], [f"{tag}size"]),
        helper.make_node("Expand", [f"number_{number + 1}", f"{tag}size"], [f"{tag}used"]),
    ]
    results = [f"{tag}result_logits", f"{tag}result_used"]
    subset = {name: f"{tag}{name}" for name in (SHARED, *SUMS) if name in names}
    inputs = {BEFORE.get(name, name): new for name, new in subset.items()}
    body, output_names = _nodes(stages[number + 1].graph.graph, f"expert_{number + 2}/", inputs)
    if stages[number + 1].is_last:
        after = _all(output_names, number + 2)
    else:
        after = _continue(stages, number + 1, {SHARED: subset[SHARED]} | output_names, classes)
    then = [
        *(helper.make_node("Gather", [names[name], f"{tag}kept"], [new], axis=0) for name, new in subset.items()),
        *body.node,
        *after.nodes,
        helper.make_node("Unsqueeze", [f"{tag}kept", "axis_1"], [f"{tag}rows"]),
        helper.make_node("ScatterND", [so_far, f"{tag}rows", after.logits], [f"{tag}then_logits"]),
        helper.make_node("ScatterND", [f"{tag}used", f"{tag}rows", after.used], [f"{tag}then_used"]),
    ]
    otherwise = [  # a branch may not return a value from outside as it is
        helper.make_node("Identity", [so_far], [f"{tag}else_logits"]),
        helper.make_node("Identity", [f"{tag}used"], [f"{tag}else_used"]),
    ]
    branches = {
        "then_branch": _branch(then, f"{tag}then", classes, body.initializer),
        "else_branch": _branch(otherwise, f"{tag}else", classes),
    }
    return _Piece([*nodes, helper.make_node("If", [f"{tag}any"], results, **branches)], *results)


def _all(names: Mapping[str, str], number: int) -> _Piece:
    """The results of images that reach the last of ``number`` experts."""
    nodes = [
        helper.make_node("Shape", [names[LOGITS]], ["last/size"], start=0, end=1),
        helper.make_node("Expand", [f"number_{number}", "last/size"], ["last/used"]),
    ]
    return _Piece(nodes, names[LOGITS], "last/used")


def _branch(nodes: Sequence[NodeProto], name: str, classes: int, weights: Sequence[TensorProto] = ()) -> GraphProto:
    outputs = [
        helper.make_tensor_value_info(f"{name}_logits", TensorProto.FLOAT, [None, classes]),
        helper.make_tensor_value_info(f"{name}_used", TensorProto.INT64, [None]),
    ]
    return helper.make_graph(nodes, name, [], outputs, weights)


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yields nodes, and those of their branches."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _all_nodes(attribute.g.node)


def _opsets(stages: Sequence[Stage]) -> list[onnx.OperatorSetIdProto]:
    """The operator sets that the graphs use: that of ONNX, and those of ONNX Runtime after quantisation."""
    versions = {item.domain: item.version for stage in stages for item in stage.graph.opset_import}
    return [helper.make_opsetid(domain, version) for domain, version in versions.items()]
