"""A program of `torch.export`, for PyTorch without longtail. All experts always run.

A routed program would have tensors inside of branches whose size depends on the images. `torch.cond`, the branch of
`torch.export`, requires results of a size that is known outside of them.
"""

import io
import json
from dataclasses import asdict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from longtail.interop.export import Exported, Source, register
from longtail.interop.networks import AllExperts, PixelsToInputs
from longtail.interop.onnx.runtime import OnnxOutputs
from longtail.models.fuse import fuse_batch_norms

METADATA_FILE = "longtail.json"
"""Name of the metadata within the file"""


class _Program(nn.Module):
    def __init__(self, source: Source):
        super().__init__()
        model = fuse_batch_norms(source.model, source.metadata.image_size)
        self.logits = AllExperts(model, PixelsToInputs(source.metadata))
        self.temperature = source.model.temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, S, S), uint8 -> logits (B, C), and probabilities (B, C)."""
        logits = self.logits(images)
        return logits, (logits / self.temperature).softmax(dim=1)


@register("torch", suffix=".pt2")
def build(source: Source) -> Exported:
    """Returns a program of `torch.export`, with the metadata in `METADATA_FILE`."""
    size = source.metadata.image_size
    example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        program = torch.export.export(
            _Program(source).eval(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # lines of code, with paths of this machine
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={METADATA_FILE: json.dumps(asdict(source.properties))})
    content = file.getvalue()
    loaded = torch.export.load(io.BytesIO(content)).module()

    def run(pixels: NDArray[np.uint8], threshold: float | None) -> OnnxOutputs:
        with torch.no_grad():
            logits, probabilities = loaded(torch.from_numpy(pixels))
        used = np.full(len(pixels), source.model.num_experts)
        return OnnxOutputs(logits.numpy(), probabilities.numpy(), used)

    return Exported(content, run, is_routed=False)
