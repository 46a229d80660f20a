"""Classify pictures with a trained model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longtail.data.image_io import load_rgb
from longtail.data.image_loader import FileLoader
from longtail.data.loaders import Normalise
from longtail.data.sources.image_files import find_images_below, log_skipped_files
from longtail.data.splits import ImageSplit, as_paths
from longtail.data.transforms import eval_transform
from longtail.models.fuse import fuse_batch_norms
from longtail.runs.model_file import ModelMetadata, load_model_file, model_file
from longtail.runtime.device import Precision, Runtime, pick_device
from longtail.runtime.process import num_processors
from longtail.utils.errors import InputError, raise_all


class Choice(NamedTuple):
    """A class and how likely it is."""

    class_name: str
    probability: float


class Prediction(NamedTuple):
    """The most likely class of a picture."""

    path: Path
    class_name: str
    probability: float
    others: tuple[Choice, ...] = ()
    """The next most likely, as many as were asked for"""


class Predictor:
    """A trained model that is kept in memory and classifies pictures, as a service needs it.

    Its batch norms are fuse_batch_norms into convolutions, which is faster and changes last digits.

    Args:
        model: a run folder or a model file.
        device: where to.
        precision: of matrix products and convolutions. Half of it is faster on hardware with instructions for it, and
            changes answers that stand between two classes, and between asking one more expert and not.
        all_experts: ask all of them, whatever the router says; so do models without one.

    Attributes:
        metadata: what is known of the model: ``class_names``, ``image_size`` and so on.

    Raises:
        InputError: no model, or no such device.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        precision: Precision = "float32",
        all_experts: bool = False,
    ):
        network, metadata = load_model_file(model_file(model))
        self.metadata: ModelMetadata = metadata
        self._runtime = Runtime(pick_device(device), precision)
        network = fuse_batch_norms(network, metadata.image_size)
        self._network = network.to(self._runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._routed = network.router is not None and not all_experts
        self._transform = eval_transform(metadata.image_size, metadata.resize, metadata.interpolation)
        self._normalise = Normalise(metadata.mean, metadata.std, self._runtime.device)

    def classify(self, images: Sequence[Image.Image], top: int = 1) -> list[list[Choice]]:
        """The most likely classes of each picture, the most likely first; all pictures in one step.

        Args:
            images: of Pillow, of any kind and size; they stay as they are.
            top: how many classes.

        Raises:
            InputError: ``top`` is below 1.
            Exception: whatever Pillow raises where a picture that was opened cannot be loaded.
        """
        _check_least(top=(top, 1))
        if not images:
            return []
        pixels = torch.stack([self._transform(load_rgb(image.copy())) for image in images])
        return self._choices(self._normalise(pixels.to(self._runtime.device)), top)

    def predict(
        self, pictures: Sequence[str | Path], *, batch_size: int = 64, top: int = 1, workers: int = 0
    ) -> Iterator[Prediction]:
        """As `predict`, which see."""
        _check_least(batch_size=(batch_size, 1), top=(top, 1), workers=(workers, 0))
        return self._predicted(find_images(pictures), batch_size, top, workers)

    def _predicted(self, paths: list[Path], batch_size: int, top: int, workers: int) -> Iterator[Prediction]:
        problems: list[str] = []
        loader = FileLoader(
            ImageSplit(np.arange(len(paths)), paths=as_paths(paths)),  # which ones are in a batch: not all may decode
            self._transform,
            batch_size,
            device=self._runtime.device,
            normalise=self._normalise,
            seed=0,
            shuffle=False,
            workers=min(workers, num_processors()) if len(paths) > batch_size else 0,
            on_corrupt_image=lambda error: problems.append(str(error)),
        )
        for images, positions in loader.epoch(0):
            for position, (first, *others) in zip(positions.tolist(), self._choices(images, top), strict=True):
                yield Prediction(paths[position], *first, tuple(others))
        raise_all(problems)

    def _choices(self, images: Tensor, top: int) -> list[list[Choice]]:
        runtime, network, names = self._runtime, self._network, self.metadata.class_names
        with torch.inference_mode(), runtime.tf32(True), runtime.autocast():  # as models are tested
            logits = network.route(images).logits if self._routed else network.predict_logits(images)
            found = logits.softmax(dim=1).topk(min(top, len(names)))
        pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
        return [[Choice(names[k], likely) for k, likely in zip(*best, strict=True)] for best in pairs]


def predict(
    model: str | Path,
    pictures: Sequence[str | Path],
    *,
    batch_size: int = 64,
    device: str = "auto",
    precision: Precision = "float32",
    all_experts: bool = False,
    top: int = 1,
    workers: int = 0,
) -> Iterator[Prediction]:
    """Classifies pictures, in order; by the ensemble of as many experts as the router of the model gives them.

    Args:
        model: a run folder or a model file.
        pictures: pictures, or folders that are searched for pictures.
        batch_size: pictures in a step.
        device: as of `Predictor`; and the next two.
        precision: of products and convolutions.
        all_experts: whatever the router says.
        top: how many classes are wanted for each picture, the most likely first.
        workers: processes that decode, where there are more pictures than a batch, at most one for each processor; 0
            decodes in this one.

    Raises:
        InputError: no model, no picture, a number that cannot be; or, after all others have been classified, pictures
            that cannot be decoded.
    """
    classifier = Predictor(model, device=device, precision=precision, all_experts=all_experts)
    return classifier.predict(pictures, batch_size=batch_size, top=top, workers=workers)


def _check_least(**numbers: tuple[int, int]) -> None:
    for name, (value, least) in numbers.items():
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Pictures, and those in folders, in order.

    Raises:
        InputError: a place is neither a picture nor a folder with some.
    """
    return [path for place in places for path in _pictures(Path(place))]


def _pictures(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"'{path}' is neither a picture nor a folder")
    found, others = find_images_below(path)
    log_skipped_files(path, others)
    if not found:
        raise InputError(f"no pictures in '{path}'")
    return found
