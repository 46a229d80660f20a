"""8-bit integers: static quantisation of exported graphs, and what it costs in accuracy.

Letters in shapes: N images, E experts, C classes, S height and width of the images.
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from longtail.evaluation.flops import cost
from longtail.evaluation.metrics import score
from longtail.evaluation.routing import Budget, choose_threshold, curve
from longtail.interop.export import Source
from longtail.interop.onnx.layout import BEFORE, IMAGES, LOGITS, SCORE, SHARED, SUMS
from longtail.interop.onnx.runtime import PROVIDERS, OnnxFile, OnnxParts, open_session, run_session
from longtail.interop.onnx.stages import Stage
from longtail.utils.errors import InputError
from longtail.utils.format import pluralize

OPERATORS = ["Conv", "MatMul"]
"""What is quantised. Heads and router are of another operator (Gemm)"""

BATCH, NUM_CALIBRATION = 32, 256
"""Images in a batch, and most images for calibration"""

SPEED_IMAGES, ROUNDS = 64, 5
"""Images in a round of the speed measurement, and rounds"""

OnnxModel = OnnxFile | OnnxParts
Feed = dict[str, NDArray[Any]]


class Int8:
    """Quantised graphs of a model, with a threshold of their own.

    Weights and activations of convolutions and matrix products have 8 bits; weights have a sign, and a scale for each
    channel. Activations have no sign, because VNNI instructions multiply numbers without sign by numbers with sign.
    The threshold is chosen again on the validation images: the most accurate one with which the mean cost of an image
    is not higher than before.

    Args:
        source: with validation images.
        stages: graphs of the model.

    Attributes:
        stages: the quantised graphs.
        metadata: of the quantised model.
    """

    def __init__(self, source: Source, stages: Sequence[Stage]):
        assert source.calibration is not None
        self._source, self._images = source, source.calibration
        self._before, self.stages = stages, quantise(stages, self._spaced(NUM_CALIBRATION))
        self.metadata = replace(source.properties, precision="int8")
        if steps := len(source.properties.thresholds):
            self.metadata = replace(self.metadata, thresholds=(self._threshold(),) * steps)

    def _spaced(self, number: int) -> NDArray[np.uint8]:
        """Returns at most this many images, of all classes even if the images are in their order."""
        pixels = self._images.pixels
        return pixels[:: -(-len(pixels) // number)]

    def _threshold(self) -> float:
        pixels, labels = self._images.pixels, torch.from_numpy(self._images.labels)
        costs = np.array(cost(self._source.model, self._source.metadata.image_size).routed_costs)
        _, scores = collect(self._before, pixels)
        goes_on = np.cumprod(scores > np.array(self._source.properties.thresholds, dtype=np.float32), axis=1)
        budget = Budget(float(costs[goes_on.sum(axis=1)].mean()), "MACs")
        classes, scores = collect(self.stages, pixels)
        points = curve(
            torch.from_numpy(classes) == labels[:, None],
            torch.from_numpy(scores).double().logit(),
            labels,
            costs.tolist(),
        )
        return choose_threshold(points, compute_budget=budget)

    def compare(self, model: OnnxModel, quantised: OnnxModel) -> tuple[str, ...]:
        """Compares the quantised model with the one before on the validation images; returns the numbers as text.

        Raises:
            InputError: it loses more accuracy, overall or balanced, than the tolerance.
        """
        pixels, labels = self._images
        (first, first_used), (second, second_used) = (_predict(each, pixels) for each in (model, quantised))
        before, after = (self._accuracies(classes) for classes in (first, second))
        numbers = (
            f"on {pluralize(len(labels), 'validation image')}, accuracy {after[0]:.2f} instead of {before[0]:.2f} %, "
            f"balanced {after[1]:.2f} instead of {before[1]:.2f} %, same class for {_same(first, second):.1f} %"
        )
        if old := self._source.properties.thresholds:
            numbers += (
                f", same number of experts for {_same(first_used, second_used):.1f} %, mean experts "
                f"{second_used.mean():.2f} instead of {first_used.mean():.2f}, threshold "
                f"{self.metadata.thresholds[0]:.4f} instead of {old[0]:.4f}"
            )
        lost = max(old - new for old, new in zip(before, after, strict=True))
        if lost > self._source.tolerance:
            raise InputError(
                f"int8 loses {lost:.2f} points of accuracy, more than the tolerance of {self._source.tolerance:g}: "
                f"{numbers}; export without int8, or raise the tolerance"
            )
        size = sum(s.graph.ByteSize() for s in self.stages) / sum(s.graph.ByteSize() for s in self._before)
        speed = _time_ratio(quantised, model, self._spaced(SPEED_IMAGES))
        return (f"int8 {numbers}", f"int8 has {size:.2f} of the size and takes {speed:.2f} of the time on this machine")

    def _accuracies(self, classes: NDArray[np.int64]) -> tuple[float, float]:
        """Returns overall and balanced accuracy in percent."""
        counts = [0] * len(self.metadata.class_names)
        scores = score(torch.from_numpy(classes), torch.from_numpy(self._images.labels), counts)
        return 100 * scores.accuracy, 100 * scores.balanced


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """The inputs of one stage for calibration: batches of pixels, after the stages before it."""

    def __init__(self, before: Sequence[Any], pixels: NDArray[np.uint8]):
        self._feeds = (_run(before, batch)[0] for batch in _batches(pixels))

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def quantise(stages: Sequence[Stage], pixels: NDArray[np.uint8]) -> list[Stage]:
    """Returns quantised graphs.

    Args:
        stages: graphs of a model.
        pixels: images from which the ranges of activations are taken, (N, 3, S, S).
    """
    quantised, sessions = [], list[Any]()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        for stage in stages:
            path, graph = Path(folder) / "int8.onnx", onnx.ModelProto()
            graph.CopyFrom(stage.graph)  # quantisation moves its weights to files
            quantize_static(
                graph,
                path,
                _Reader(sessions, pixels),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
            quantised.append(stage._replace(graph=onnx.load(path)))
            sessions.append(_session(stage))
    return quantised


class StageOutputs(NamedTuple):
    """Outputs of all stages for N images."""

    classes: NDArray[np.int64]
    """Predicted by the ensembles of the first 1 to E experts, (N, E)"""

    scores: NDArray[np.float32]
    """Probabilities of the router, (N, E - 1)"""


def collect(stages: Sequence[Stage], pixels: NDArray[np.uint8]) -> StageOutputs:
    """Runs all stages on all images (N, 3, S, S)."""
    sessions = [_session(stage) for stage in stages]
    outputs = [_run(sessions, batch)[1] for batch in _batches(pixels)]
    classes = [np.stack([values[LOGITS].argmax(axis=1) for values in batch], axis=1) for batch in outputs]
    scores = [np.stack([values[SCORE] for values in batch[:-1]], axis=1) for batch in outputs]
    return StageOutputs(np.concatenate(classes), np.concatenate(scores))


def _run(sessions: Sequence[Any], pixels: NDArray[np.uint8]) -> tuple[Feed, list[Feed]]:
    """Runs stages on a batch; returns the inputs of the stage that follows, and the outputs of each."""
    feed: Feed = {IMAGES: pixels}
    outputs = []
    for session in sessions:
        values = run_session(session, feed)
        outputs.append({name: values[name] for name in (LOGITS, SCORE) if name in values})
        values = feed | values  # later stages do not return the output of the trunk
        feed = {BEFORE.get(name, name): values[name] for name in (SHARED, *SUMS) if name in values}
    return feed, outputs


def _session(stage: Stage) -> Any:
    return open_session(stage.graph.SerializeToString(), None, PROVIDERS)


def _batches(pixels: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    return (pixels[start : start + BATCH] for start in range(0, len(pixels), BATCH))


def _predict(model: OnnxModel, pixels: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns the predicted classes (N,), and the number of experts of each image (N,)."""
    outputs = [model.run(batch) for batch in _batches(pixels)]
    classes = np.concatenate([batch.logits.argmax(axis=1) for batch in outputs])
    return classes, np.concatenate([batch.experts_used for batch in outputs])


def _same(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    return 100 * float((first == second).mean())


def _time_ratio(first: OnnxModel, second: OnnxModel, pixels: NDArray[np.uint8]) -> float:
    """Returns the time of one model divided by that of another: the median over rounds in which both run in turn."""
    ratios = []
    for _ in range(ROUNDS + 1):
        times = []
        for model in (first, second):
            start = time.perf_counter()
            for batch in _batches(pixels):
                model.run(batch)
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])  # the first one is a warm-up


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it, advice of the quantisation is not shown. It goes through the root logger, which gets a handler."""
    before, handlers = logging.root.manager.disable, logging.root.handlers[:]
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers
