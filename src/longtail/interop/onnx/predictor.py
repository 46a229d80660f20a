"""Classification of images with an exported model. Needs NumPy, Pillow and onnxruntime, not PyTorch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from longtail.data.predictions import ClassProbability, ImageClassifier, Pixels, check_min
from longtail.interop.onnx.metadata import as_thresholds
from longtail.interop.onnx.runtime import PROVIDERS, OnnxOutputs, Thresholds, open_model
from longtail.utils.errors import InputError

ALL_EXPERTS = -1.0
"""A threshold below all probabilities of a router"""


class OnnxPredictor(ImageClassifier):
    """An exported model in memory that classifies images as `longtail.Predictor` does, without PyTorch.

    It decodes, turns and resizes images with the same code. Besides NumPy and Pillow it needs onnxruntime:
    ``pip install 'longtail[onnx]'``.

    Args:
        model: what `longtail.export` wrote: an ONNX file, or the folder of a model in parts.
        thresholds: of the router, one for all steps or one for each; None: those of the model. At -1 all experts run,
            at 1 only the first.
        all_experts: run all experts, whatever the router decides.
        threads: of ONNX Runtime; None: one for each processor.
        providers: where ONNX Runtime computes.

    Attributes:
        metadata: class names, image size, thresholds and so on: `longtail.interop.onnx.metadata.OnnxMetadata`.

    Raises:
        InputError: the model is missing, damaged or another kind of file; the number of thresholds is wrong; or
            onnxruntime is not installed.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        thresholds: Thresholds = None,
        all_experts: bool = False,
        threads: int | None = None,
        providers: Sequence[str] = PROVIDERS,
    ):
        if threads is not None:
            check_min(threads=(threads, 1))
        self._model = open_model(Path(model), threads, providers)
        self.metadata = self._model.metadata
        if all_experts:
            thresholds = ALL_EXPERTS if self.metadata.thresholds else None
        as_thresholds(thresholds, self.metadata)
        self._thresholds = thresholds
        super().__init__(self.metadata, on_cpu=tuple(providers) == PROVIDERS)

    def run(self, pixels: NDArray[np.uint8]) -> OnnxOutputs:
        """Runs the model on images that are prepared: (B, 3, S, S), red, green and blue from 0 to 255, S `image_size`.

        Returns:
            Logits, probabilities and number of experts of each image.

        Raises:
            InputError: the array has another type or shape.
        """
        size = self.metadata.image_size
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (3, size, size):
            raise InputError(f"pixels are {pixels.dtype} {pixels.shape}; they must be uint8 (B, 3, {size}, {size})")
        return self._model.run(pixels, self._thresholds)

    def _top_classes(self, pixels: Sequence[Pixels], top: int) -> list[list[ClassProbability]]:
        probabilities = self.run(np.stack(pixels).transpose(0, 3, 1, 2)).probabilities
        names = self.metadata.class_names
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            [ClassProbability(names[k], float(row[k])) for k in best]
            for row, best in zip(probabilities, order.tolist(), strict=True)
        ]
