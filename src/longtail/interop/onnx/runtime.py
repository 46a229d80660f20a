"""Runs exported ONNX files with ONNX Runtime. Needs NumPy and onnxruntime, not PyTorch.

Letters in shapes: B images, E experts, C classes, S height and width of the images.
"""

import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

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
from longtail.interop.onnx.metadata import OnnxMetadata, as_thresholds
from longtail.runtime.process import num_processors, processor_info
from longtail.utils.errors import InputError
from longtail.utils.extras import check_extra
from longtail.utils.paths import check_regular

PROVIDERS = ("CPUExecutionProvider",)
"""Where ONNX Runtime computes by default"""

PRECISE_INT8 = ("session.x64quantprecision", "1")
"""Option of ONNX Runtime that is slower, and prevents `saturates`"""

Thresholds = float | Sequence[float] | None
"""Of the router: one for all steps, one for each, or those of the model"""


class OnnxOutputs(NamedTuple):
    """Outputs for a batch of B images."""

    logits: NDArray[np.float32]
    """(B, C), of the ensemble of the experts that ran; not divided by the temperature"""

    probabilities: NDArray[np.float32]
    """(B, C), ``softmax(logits / temperature)``"""

    experts_used: NDArray[np.int64]
    """(B,), from 1 to E"""


class OnnxFile:
    """A model in one file.

    Args:
        source: path, or content, of the file.
        threads: of ONNX Runtime; None: one for each processor.
        providers: where ONNX Runtime computes.

    Raises:
        InputError: the file is missing, or not an ONNX file of longtail.
    """

    def __init__(self, source: Path | bytes, threads: int | None = None, providers: Sequence[str] = PROVIDERS):
        self._session = open_session(source, threads, providers)
        self.metadata = read_metadata(source, self._session)

    def run(self, pixels: NDArray[np.uint8], thresholds: Thresholds = None) -> OnnxOutputs:
        """Runs the model: pixels (B, 3, S, S) -> outputs.

        Raises:
            InputError: the number of thresholds is wrong.
        """
        feed: dict[str, NDArray[Any]] = {IMAGES: pixels}
        if thresholds is not None:
            feed[THRESHOLDS] = np.array(as_thresholds(thresholds, self.metadata), dtype=np.float32)
        return OnnxOutputs(*self._session.run([LOGITS, PROBABILITIES, EXPERTS_USED], feed))


class OnnxParts:
    """A model in several files, one for each expert, in a folder. The images that continue are chosen between them.

    Args:
        source: path of the folder, or the contents of the files by name.
        threads: see `OnnxFile`.
        providers: see `OnnxFile`.

    Raises:
        InputError: a file is missing, or not an ONNX file of longtail.
    """

    def __init__(
        self, source: Path | dict[str, bytes], threads: int | None = None, providers: Sequence[str] = PROVIDERS
    ):
        def file(name: str) -> Path | bytes:
            return source[name] if isinstance(source, dict) else source / name

        first = open_session(file(FIRST_FILE), threads, providers)
        self.metadata = read_metadata(file(FIRST_FILE), first)
        further = range(2, self.metadata.num_experts + 1) if self.metadata.thresholds else ()
        others = [open_session(file(EXPERT_FILE.format(number)), threads, providers) for number in further]
        self._sessions = [first, *others]

    def run(self, pixels: NDArray[np.uint8], thresholds: Thresholds = None) -> OnnxOutputs:
        """As `OnnxFile.run`."""
        limits = as_thresholds(thresholds, self.metadata)
        values = run_session(self._sessions[0], {IMAGES: pixels})
        logits = values[LOGITS]
        used = np.full(len(pixels), 1 if limits else self.metadata.num_experts)
        active = np.arange(len(pixels))
        for step, limit in enumerate(limits):
            kept = np.flatnonzero(values[SCORE] > np.float32(limit))
            if not len(kept):
                break
            active = active[kept]
            feed = {BEFORE.get(name, name): values[name][kept] for name in (SHARED, *SUMS) if name in values}
            values = run_session(self._sessions[step + 1], feed)
            values.setdefault(SHARED, feed[SHARED])
            logits[active], used[active] = values[LOGITS], step + 2
        return OnnxOutputs(logits, softmax(logits, self.metadata.temperature), used)


def open_model(path: Path, threads: int | None = None, providers: Sequence[str] = PROVIDERS) -> "OnnxFile | OnnxParts":
    """Opens a file, or a folder of a model in parts.

    Raises:
        InputError: it is neither.
    """
    if not path.exists():
        raise InputError(f"'{path}': no such file; longtail export RUN {path} writes it")
    if path.is_dir():
        if not (path / FIRST_FILE).is_file():
            raise InputError(f"'{path}' is not a folder of an exported model: it has no {FIRST_FILE}")
        return OnnxParts(path, threads, providers)
    return OnnxFile(path, threads, providers)


def is_onnx(path: Path) -> bool:
    """Whether a path is an exported model by its name: a file that ends in .onnx, or a folder of parts."""
    return path.suffix.lower() == ".onnx" or (path / FIRST_FILE).is_file()


def open_session(source: Path | bytes, threads: int | None, providers: Sequence[str]) -> Any:
    """Opens an ONNX file with ONNX Runtime.

    Raises:
        InputError: it is not an ONNX file, or there is no such provider.
    """
    check_extra("onnx", "onnxruntime")
    import onnxruntime as runtime

    unknown = [name for name in providers if name not in runtime.get_available_providers()]
    if unknown:
        available = ", ".join(runtime.get_available_providers())
        raise InputError(f"providers: ONNX Runtime has no '{unknown[0]}' here; it has {available}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = num_processors() if threads is None else threads
    options.log_severity_level = 3  # errors; it warns of inputs with default values
    if saturates():
        options.add_session_config_entry(*PRECISE_INT8)
    if isinstance(source, Path):
        check_regular(source)
    try:
        return runtime.InferenceSession(
            source if isinstance(source, bytes) else str(source), options, providers=list(providers)
        )
    except Exception as error:  # the type depends on the damage
        raise _not_ours(source, " ".join(str(error).split())[:200]) from error


def run_session(session: Any, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Returns all outputs of a session by name."""
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


@cache
def saturates() -> bool:
    """Whether sums of two 8-bit products saturate at 16 bits: on x86 processors without VNNI instructions."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    # If the system does not say: slow and correct.
    return {"avx512_vnni", "avx_vnni"}.isdisjoint(processor_info("flags").split())


def read_metadata(source: Path | bytes, session: Any) -> OnnxMetadata:
    """Reads the metadata of an open file.

    Raises:
        InputError: they are missing or damaged, or the inputs are others.
    """
    try:
        metadata = OnnxMetadata.parse(session.get_modelmeta().custom_metadata_map)
        (images, *_), (logits, *_) = session.get_inputs(), session.get_outputs()
        size = metadata.image_size
        if (images.name, images.type, images.shape[1:]) != (IMAGES, "tensor(uint8)", [3, size, size]):
            raise ValueError(f"its input '{images.name}' is {images.type} {images.shape}")
        if logits.name != LOGITS or logits.shape[1:] != [len(metadata.class_names)]:
            raise ValueError(f"it has {len(metadata.class_names)} class names, and {logits.name} {logits.shape}")
    except (ValueError, TypeError, RecursionError) as error:
        raise _not_ours(source, str(error)) from error
    return metadata


def softmax(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Returns probabilities: (B, C) -> (B, C)."""
    exponentials = np.exp((logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature))
    probabilities: NDArray[np.float32] = exponentials / exponentials.sum(axis=1, keepdims=True)
    return probabilities


def _not_ours(source: Path | bytes, reason: str) -> InputError:
    name = "the exported file" if isinstance(source, bytes) else source
    return InputError(f"{name}: cannot be read as an ONNX file of longtail ({reason}); longtail export RUN writes one")
