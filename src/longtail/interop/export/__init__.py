"""Formats of exported models. Each module of this package registers the formats that it writes.

A new format is one new module::

    @register("my-format", suffix=".my")
    def build(source: Source) -> Exported: ...

What it returns is then compared with PyTorch, and only written if it computes the same.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from longtail.utils.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from longtail.interop.onnx.metadata import OnnxMetadata
    from longtail.interop.onnx.runtime import OnnxOutputs
    from longtail.models.multi_expert import MultiExpert
    from longtail.runs.model_file import ModelMetadata


class Images(NamedTuple):
    """Labelled images that a model did not learn from."""

    pixels: "NDArray[np.uint8]"
    """(N, 3, S, S)"""

    labels: "NDArray[np.int64]"
    """(N,)"""


class Source(NamedTuple):
    """What is exported. Letters in shapes: N images, S height and width of the images."""

    model: "MultiExpert"
    """On the CPU, in eval mode; not changed"""

    metadata: "ModelMetadata"

    properties: "OnnxMetadata"
    """What the file says about itself"""

    calibration: Images | None = None
    """Validation images, if 8-bit integers are asked for"""

    tolerance: float = 1.0
    """Points of accuracy that 8-bit integers may lose"""


class Exported(NamedTuple):
    """An exported model in memory."""

    content: bytes | dict[str, bytes]
    """Of the file; or, for a folder, of its files by name"""

    run: "Callable[[NDArray[np.uint8], float | None], OnnxOutputs]"
    """Runs it: pixels (B, 3, S, S), and a threshold of the router or None for its own -> outputs"""

    is_routed: bool = True
    """Whether skipped experts are not computed; otherwise all experts always run"""

    is_exact: bool = True
    """Whether it computes what PyTorch computes, up to rounding; otherwise the builder has measured it"""

    notes: tuple[str, ...] = ()
    """Lines for the user, such as measurements"""

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return len(self.content) if isinstance(self.content, bytes) else sum(map(len, self.content.values()))


Build = Callable[[Source], Exported]


class Format(NamedTuple):
    """A registered format."""

    build: Build

    suffix: str
    """End of the file's name; empty for a folder"""

    has_int8: bool
    """Whether it can be written with 8-bit integers"""


REGISTRY: Registry[Format] = Registry("format", __name__)


def register(name: str, *, suffix: str, has_int8: bool = False) -> Callable[[Build], Build]:
    """Decorator that makes a function the builder of a format."""

    def decorate(build: Build) -> Build:
        REGISTRY.added[name] = Format(build, suffix, has_int8)
        return build

    return decorate
