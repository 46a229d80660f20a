"""Classification of images with an exported model. Needs NumPy, Pillow and onnxruntime, not PyTorch."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.data.central_crop import central_pixels
from longtail.data.find_images import find_images
from longtail.data.image_io import copied_rgb, decode
from longtail.interop.onnx.metadata import as_thresholds
from longtail.interop.onnx.runtime import PROVIDERS, OnnxOutputs, Thresholds, open_model
from longtail.runtime.process import default_workers, num_processors
from longtail.utils.errors import InputError
from longtail.utils.predictions import (
    ClassProbability,
    Pixels,
    Prediction,
    check_min,
    classify_files,
    pick_batch_size,
)

ALL_EXPERTS = -1.0
"""A threshold below all probabilities of a router"""


class OnnxPredictor:
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
        self._is_on_cpu = tuple(providers) == PROVIDERS

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

    def classify(self, images: Sequence[Image.Image], top: int = 1) -> list[list[ClassProbability]]:
        """Returns the most probable classes of each image: see `longtail.Predictor.classify`."""
        check_min(top=(top, 1))
        if not images:
            return []
        return self._top_classes([self._pixels(image) for image in copied_rgb(images)], top)

    def predict(
        self,
        images: str | Path | Sequence[str | Path],
        *,
        batch_size: int | None = None,
        top: int = 1,
        workers: int = 0,
    ) -> Iterator[Prediction]:
        """Classifies image files: see `longtail.predict`."""
        check_min(top=(top, 1), workers=(workers, 0))
        processors = num_processors() if self._is_on_cpu else None
        return classify_files(
            find_images(images),
            lambda path: self._pixels(decode(path)),
            lambda pixels: self._top_classes(pixels, top),
            batch_size=pick_batch_size(batch_size, self.metadata.image_size, processors),
            threads=workers or default_workers(),
            ahead=not self._is_on_cpu,
        )

    def _pixels(self, image: Image.Image) -> Pixels:
        form = self.metadata
        return central_pixels(image, form.resize, form.image_size, form.interpolation)

    def _top_classes(self, pixels: Sequence[Pixels], top: int) -> list[list[ClassProbability]]:
        probabilities = self.run(np.stack(pixels).transpose(0, 3, 1, 2)).probabilities
        names = self.metadata.class_names
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            [ClassProbability(names[k], float(row[k])) for k in best]
            for row, best in zip(probabilities, order.tolist(), strict=True)
        ]
