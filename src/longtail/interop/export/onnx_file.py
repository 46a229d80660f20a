"""ONNX: one file with a routed graph, or a folder with one file for each expert."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from longtail.interop.export import Exported, Source, register
from longtail.interop.onnx.metadata import OnnxMetadata
from longtail.interop.onnx.runtime import OnnxFile, OnnxParts
from longtail.utils.errors import InputError
from longtail.utils.extras import check_extra

if TYPE_CHECKING:
    from longtail.interop.onnx.stages import Stage

    Write = Callable[[Sequence[Stage], OnnxMetadata], Any]

MAX_BYTES = 2**31 - 2**20
"""Of an ONNX file: a limit of its format, with some room for the metadata"""


@register("onnx", suffix=".onnx", has_int8=True)
def build(source: Source) -> Exported:
    """Returns one file. Experts that the router skips are not computed."""
    return _build(source, _one_file, OnnxFile)


@register("onnx-parts", suffix="", has_int8=True)
def build_parts(source: Source) -> Exported:
    """Returns a file for each expert. The first one includes the trunk."""
    return _build(source, _files, OnnxParts)


def _build(source: Source, write: "Write", open_content: Callable[[Any], OnnxFile | OnnxParts]) -> Exported:
    check_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    from longtail.interop.onnx.stages import export_stages

    stages = export_stages(source.model, source.metadata)
    content = write(stages, source.properties)
    model = open_content(content)
    if source.calibration is None:
        return Exported(content, model.run)
    from longtail.interop.onnx.int8 import Int8

    int8 = Int8(source, stages)
    content = write(int8.stages, int8.metadata)
    quantised = open_content(content)
    return Exported(content, quantised.run, notes=int8.compare(model, quantised), is_exact=False)


def _one_file(stages: "Sequence[Stage]", metadata: OnnxMetadata) -> bytes:
    from longtail.interop.onnx.join import join

    if sum(stage.graph.ByteSize() for stage in stages) > MAX_BYTES:
        raise InputError("the model has more than 2 GiB, the limit of an ONNX file; use --format onnx-parts")
    return bytes(join(stages, metadata).SerializeToString())


def _files(stages: "Sequence[Stage]", metadata: OnnxMetadata) -> dict[str, bytes]:
    from longtail.interop.onnx.join import as_parts

    return {name: bytes(model.SerializeToString()) for name, model in as_parts(stages, metadata).items()}
