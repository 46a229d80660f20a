"""Exports a model: builds the file in memory, compares it with PyTorch, and writes it only then."""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from longtail.data.loaders import Normalise
from longtail.evaluation.flops import cost
from longtail.interop.export import REGISTRY, Exported, Format, Images, Source
from longtail.interop.onnx.metadata import OnnxMetadata
from longtail.models.multi_expert import MultiExpert
from longtail.models.router import step_thresholds
from longtail.runs.model_file import ModelMetadata
from longtail.utils.errors import InputError
from longtail.utils.files import UNFINISHED, write_atomically

ALL_EXPERTS, MODEL_THRESHOLD, FIRST_EXPERT = -1.0, None, 2.0
"""Thresholds to compare with: all experts are used, those that the model's threshold chooses, and only the first"""

BATCHES = (1, 2, 7, 64)
"""Sizes of the batches to compare"""

MAX_MACS = 64e9
"""Multiply-accumulates of a batch to compare, at most, but for the two smallest batches"""

TOLERANCE = 1e-3
"""Largest difference of a logit, relative to the largest logit or to 1 if that is smaller"""

CLOSE = 1e-4
"""Probabilities of the router this close to the threshold may be decided either way"""


class Comparison(NamedTuple):
    """The exported model compared with PyTorch."""

    images: int
    difference: float
    """Largest difference of a logit"""
    largest: float
    """Largest absolute value of a logit"""


def export_model(
    model: MultiExpert,
    metadata: ModelMetadata,
    path: Path,
    format: str,
    *,
    pixels: NDArray[np.uint8] | None = None,
    calibration: Images | None = None,
    tolerance: float = 1.0,
) -> tuple[Exported, Comparison | None]:
    """Writes an exported model.

    Args:
        model: on the CPU, in eval mode; it is not changed.
        metadata: of the model.
        path: to write to; see `check_target`.
        format: a name in `longtail.interop.export.REGISTRY`.
        pixels: images to compare with PyTorch, (N, 3, S, S); random ones by default.
        calibration: validation images; if given, the file is written with 8-bit integers.
        tolerance: points of accuracy that these may lose.

    Raises:
        InputError: see `check_target`; or the file does not compute what PyTorch computes, or loses too much accuracy.
            Nothing is written then.
    """
    check_target(path, format)
    source = Source(model, metadata, describe(model, metadata), calibration, tolerance)
    exported, comparison = _built(REGISTRY[format], source), None
    if exported.is_exact:
        comparison = compare(exported, source, random_pixels(metadata.image_size) if pixels is None else pixels)
    write(path, exported.content)
    return exported, comparison


def _built(format: Format, source: Source) -> Exported:
    try:
        return format.build(source)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # the type depends on what a network does that the format cannot express
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{source.properties.backbone} cannot be exported ({type(error).__name__}: {reason})"
        ) from error


def check_target(path: Path, format: str) -> Format:
    """Checks the path of an export before anything is computed.

    An earlier file is replaced. A folder must be new, so that nothing else in it is lost.

    Raises:
        InputError: there is no such format; the path has another suffix, exists as something else, or is in no folder.
    """
    info = REGISTRY[format]
    others = [name for name in REGISTRY.names() if REGISTRY[name].suffix == path.suffix and path.suffix]
    if info.suffix and path.suffix != info.suffix:
        hint = f", or choose --format {others[0]}" if others else ""
        raise InputError(f"output is '{path}'; the name must end in {info.suffix} for format '{format}'{hint}")
    if not info.suffix and others:
        raise InputError(
            f"output is '{path}', but format '{format}' is a folder; its name must not end in {path.suffix}"
        )
    if path.exists() and not (path.is_file() and info.suffix):
        wanted = "name a file" if info.suffix else "name a new folder"
        raise InputError(f"output '{path}' exists; {wanted}")
    if not path.parent.is_dir():
        raise InputError(f"output is '{path}', but '{path.parent}' is not a folder")
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"output is '{path}', but '{path.parent}' cannot be written to")
    return info


def describe(model: MultiExpert, metadata: ModelMetadata) -> OnnxMetadata:
    """Returns what an exported file says about itself."""
    router, costs = model.router, cost(model, metadata.image_size)
    return OnnxMetadata(
        class_names=tuple(metadata.class_names),
        image_size=metadata.image_size,
        resize=metadata.resize,
        interpolation=metadata.interpolation,
        num_experts=model.num_experts,
        average=model.average,
        temperature=model.temperature,
        thresholds=() if router is None else tuple(step_thresholds(router.threshold, model.num_experts - 1)),
        macs=tuple(costs.prefix_costs if router is None else costs.routed_costs),
        mean=tuple(metadata.mean),
        std=tuple(metadata.std),
        backbone=str(metadata.architecture["name"]),
        version=version("longtail"),
    )


def random_pixels(size: int, number: int = BATCHES[-1]) -> NDArray[np.uint8]:
    """Returns images of noise of different contrast, always the same: (N, 3, S, S)."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (number, 3, size, size))
    factor, base = random.uniform(0, 1, (2, number, 3, 1, 1))
    pixels: NDArray[np.uint8] = (factor * noise + (1 - factor) * base * 255).astype(np.uint8)
    return pixels


def compare(exported: Exported, source: Source, pixels: NDArray[np.uint8]) -> Comparison:
    """Compares an exported model with PyTorch, in batches of several sizes.

    Raises:
        InputError: logits, probabilities or numbers of experts differ by more than rounding.
    """
    difference = largest = 0.0
    number = 0
    for size, threshold in _cases(exported, source, len(pixels)):
        batch = pixels[:size]
        number = max(number, size)
        outputs = exported.run(batch, threshold)
        logits, used, close = _expected(source, batch, threshold, exported.is_routed)
        if outputs.logits.shape != logits.shape:
            raise InputError(f"the exported model's logits are {outputs.logits.shape}, those of PyTorch {logits.shape}")
        scale = max(1.0, float(np.abs(logits).max()))
        errors = np.abs(outputs.logits - logits).max(axis=1)
        probabilities = (
            (torch.from_numpy(np.ascontiguousarray(outputs.logits)) / source.model.temperature).softmax(dim=1).numpy()
        )
        wrong = (
            ~(errors <= TOLERANCE * scale)  # also nan
            | ~(np.abs(outputs.probabilities - probabilities).max(axis=1) <= TOLERANCE)
            | (outputs.experts_used != used)
        ) & ~close
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise InputError(
                f"the exported model does not compute what PyTorch computes, so nothing is written: in a batch of "
                f"{size} images, {wrong.sum()} differ; the first by {errors[first]:.3g} in a logit (the largest is "
                f"{scale:.3g}), with {outputs.experts_used[first]} instead of {used[first]} experts"
            )
        difference, largest = max(difference, float(errors[~close].max(initial=0))), max(largest, scale)
    return Comparison(number, difference, largest)


def _cases(exported: Exported, source: Source, available: int) -> Iterator[tuple[int, float | None]]:
    """Yields batch sizes and thresholds."""
    macs = source.properties.macs[-1]
    sizes = [size for size in BATCHES if size <= available and (size <= 2 or size * macs <= MAX_MACS)]
    for size in sizes or [available]:
        yield size, MODEL_THRESHOLD
    if exported.is_routed and source.model.router is not None:
        for threshold in (ALL_EXPERTS, FIRST_EXPERT):
            yield min(2, available), threshold


def _expected(
    source: Source, pixels: NDArray[np.uint8], threshold: float | None, is_routed: bool
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
    """Returns PyTorch's logits (B, C), numbers of experts (B,), and whether a decision about an image is close (B,)."""
    model, metadata = source.model, source.metadata
    images = Normalise(metadata.mean, metadata.std, torch.device("cpu"))(torch.from_numpy(pixels))
    with torch.inference_mode():
        if model.router is None or not is_routed:
            logits, used = model.predict_logits(images), torch.full((len(images),), model.num_experts)
            return logits.numpy(), used.numpy(), np.zeros(len(pixels), dtype=bool)
        routed = model.route(images, threshold)
        output = model(images)
        limits = torch.tensor(
            step_thresholds(model.router.threshold if threshold is None else threshold, model.num_experts - 1)
        )
        scores = model.router(output.logits, output.features).sigmoid()
        close = ((scores - limits).abs() <= CLOSE).any(dim=1)
    return routed.logits.numpy(), routed.experts_used.numpy(), close.numpy()


def write(path: Path, content: bytes | dict[str, bytes]) -> None:
    """Writes a file, or a folder of files; a crash leaves nothing half-written under its name.

    Raises:
        InputError: the disk is full, or the folder is not writable.
    """
    if isinstance(content, bytes):
        write_atomically(path, content)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        temporary.mkdir()
        for name, part in content.items():
            write_atomically(temporary / name, part)
        temporary.rename(path)
    except BaseException as error:
        with suppress(OSError):
            shutil.rmtree(temporary)
        if isinstance(error, OSError):
            raise InputError(f"{path} could not be written: {error.strerror}") from error
        raise
