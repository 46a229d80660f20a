"""A model as one ONNX graph for each expert. Letters in shapes: B images, C classes, S height and width of images."""

import logging
import warnings
from typing import NamedTuple

import onnx
import torch
from torch import Tensor, nn

from longtail.interop.networks import AllExperts, ExpertStage, PixelsToInputs
from longtail.interop.onnx.layout import BEFORE, IMAGES, LOGITS, SCORE, SHARED, SUMS
from longtail.models.fuse import fuse_batch_norms
from longtail.models.multi_expert import MultiExpert
from longtail.runs.model_file import ModelMetadata
from longtail.utils.console import log_level

OPSET = 20
"""Version of the ONNX operators"""


class Stage(NamedTuple):
    """The graph of one expert, and the step of the router after it."""

    graph: onnx.ModelProto
    """Its inputs are the pixels or, after the first expert, `SHARED` and the sums"""

    is_last: bool
    """Its only output is `LOGITS`. Otherwise the outputs are `LOGITS`, `SCORE`, sums and, of the first, `SHARED`"""


def export_stages(model: MultiExpert, metadata: ModelMetadata) -> list[Stage]:
    """Returns the graphs of a model's experts: one of all experts if there is no router.

    Batch norms are fused into convolutions, as in `longtail.Predictor`. The first graph normalises the pixels.

    Args:
        model: on the CPU, in eval mode; it is not changed.
        metadata: of the model.
    """
    model, normalise = fuse_batch_norms(model, metadata.image_size), PixelsToInputs(metadata)
    pixels = torch.zeros(2, 3, metadata.image_size, metadata.image_size, dtype=torch.uint8)
    if model.router is None:
        return [Stage(_export(AllExperts(model, normalise), (pixels,), [IMAGES], [LOGITS]), is_last=True)]
    sums = SUMS[: 1 if model.average == "logits" else 2]
    with torch.no_grad():
        shared = model.trunk(normalise(pixels))
    between = (shared, *(torch.zeros(2, model.num_classes) for _ in sums))
    stages = []
    for number in range(model.num_experts):
        is_first, is_last = number == 0, number == model.num_experts - 1
        inputs = [IMAGES] if is_first else [SHARED, *(BEFORE[name] for name in sums)]
        outputs = [LOGITS] if is_last else [LOGITS, SCORE, *sums, *([SHARED] if is_first else [])]
        module = ExpertStage(model, number, normalise)
        stages.append(Stage(_export(module, (pixels,) if is_first else between, inputs, outputs), is_last))
    return stages


def _export(module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str]) -> onnx.ModelProto:
    batch = torch.export.Dim("batch", min=1)
    # The exporter's warnings and notes are about PyTorch's own code.
    quiet = log_level(logging.ERROR, "torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    with quiet, warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=OPSET,
            input_names=names,
            output_names=outputs,
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for part in (model.graph, *model.graph.node, *model.graph.value_info):
        del part.metadata_props[:]  # lines of code, with paths of this machine
    return model
