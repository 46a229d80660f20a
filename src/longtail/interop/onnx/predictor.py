"""Classification of images with an exported model. Needs NumPy, Pillow and onnxruntime, not PyTorch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from longtail.data.central_crop import crop_centre, resize_shorter
from longtail.data.find_images import find_images
from longtail.data.image_io import copied_rgb, decode
from longtail.interop.onnx.metadata import as_thresholds
from longtail.interop.onnx.runtime import PROVIDERS, OnnxOutputs, Thresholds, open_model
from longtail.runtime.process import num_processors
from longtail.utils.errors import InputError, raise_all
from longtail.utils.predictions import ClassProbability, Prediction, check_min

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
        self, images: str | Path | Sequence[str | Path], *, batch_size: int = 64, top: int = 1, workers: int = 0
    ) -> Iterator[Prediction]:
        """Classifies image files: see `longtail.predict`. The workers are threads."""
        check_min(batch_size=(batch_size, 1), top=(top, 1), workers=(workers, 0))
        return self._predictions(find_images(images), batch_size, top, workers)

    def _predictions(self, paths: list[Path], batch_size: int, top: int, workers: int) -> Iterator[Prediction]:
        problems: list[str] = []
        for batch in self._decoded(paths, batch_size, workers):
            problems += [str(error) for _, error in batch if isinstance(error, InputError)]
            decoded = [(path, pixels) for path, pixels in batch if not isinstance(pixels, InputError)]
            predictions = self._top_classes([pixels for _, pixels in decoded], top) if decoded else []
            for (path, _), (first, *others) in zip(decoded, predictions, strict=True):
                yield Prediction(path, *first, tuple(others))
        raise_all(problems)

    def _decoded(
        self, paths: list[Path], batch_size: int, workers: int
    ) -> Iterator[list[tuple[Path, NDArray[np.uint8] | InputError]]]:
        """Yields batches of paths with their pixels, or the error of an image that does not decode."""
        batches = [paths[start : start + batch_size] for start in range(0, len(paths), batch_size)]
        if workers == 0:
            yield from ([(path, self._read(path)) for path in batch] for batch in batches)
            return
        with ThreadPoolExecutor(min(workers, num_processors())) as pool:
            # One batch is decoded while the model runs on the one before.
            following = [pool.submit(self._read, path) for path in batches[0]]
            for number, batch in enumerate(batches):
                current = following
                following = [
                    pool.submit(self._read, path) for batch in batches[number + 1 : number + 2] for path in batch
                ]
                try:
                    yield [(path, future.result()) for path, future in zip(batch, current, strict=True)]
                except GeneratorExit:
                    pool.shutdown(cancel_futures=True)
                    raise

    def _read(self, path: Path) -> NDArray[np.uint8] | InputError:
        try:
            return self._pixels(decode(path))
        except InputError as error:
            return error

    def _pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        form = self.metadata
        image = crop_centre(resize_shorter(image, form.resize, form.interpolation), form.image_size)
        return np.asarray(image).transpose(2, 0, 1)

    def _top_classes(self, pixels: Sequence[NDArray[np.uint8]], top: int) -> list[list[ClassProbability]]:
        probabilities = self.run(np.stack(pixels)).probabilities
        names = self.metadata.class_names
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        return [
            [ClassProbability(names[k], float(row[k])) for k in best]
            for row, best in zip(probabilities, order.tolist(), strict=True)
        ]
