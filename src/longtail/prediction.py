"""Classify pictures with a trained model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from longtail.data.file_loader import FileLoader
from longtail.data.files import pictures_below
from longtail.data.loading import Normalise
from longtail.data.splits import Split, as_paths
from longtail.data.transforms import eval_transform
from longtail.errors import InputError
from longtail.model_file import load_model_file, model_file
from longtail.models.folding import folded
from longtail.runtime import Precision, Runtime, pick_device


class Prediction(NamedTuple):
    """The most likely class of a picture."""

    path: Path
    class_name: str
    probability: float


def predict(
    model: str | Path,
    pictures: Sequence[str | Path],
    *,
    batch_size: int = 64,
    device: str = "auto",
    precision: Precision = "float32",
    all_experts: bool = False,
) -> Iterator[Prediction]:
    """Classifies pictures, in order; by the ensemble of as many experts as the router of the model gives them.

    Args:
        model: a run folder or a model file.
        pictures: pictures, or folders that are searched for pictures.
        batch_size: pictures in a step.
        device: where to.
        precision: of matrix products and convolutions. Half of it is faster on hardware with instructions for it, and
            changes answers that stand between two classes, and between asking one more expert and not.
        all_experts: ask all of them, whatever the router says; so do models without one.

    Raises:
        InputError: no model, no picture, or a picture that cannot be decoded.
    """
    network, card = load_model_file(model_file(model))
    runtime = Runtime(pick_device(device), precision)
    paths = [path for picture in pictures for path in _pictures(Path(picture))]
    if len(paths) > batch_size:  # folding takes about as long as a batch or less
        network = folded(network, card.image_size)
    network.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = FileLoader(
        Split(np.zeros(len(paths), np.int64), paths=as_paths(paths)),
        eval_transform(card.image_size, card.resize, card.interpolation),
        batch_size,
        device=runtime.device,
        normalise=Normalise(card.mean, card.std, runtime.device),
        seed=0,
        shuffle=False,
        workers=0,
    )
    remaining = iter(paths)
    for images, _ in loader.epoch(0):
        with torch.inference_mode(), runtime.autocast():
            routed = network.router is not None and not all_experts
            logits = network.route(images).logits if routed else network.answer(images)
            probabilities, classes = logits.softmax(dim=1).max(dim=1)
        for probability, label in zip(probabilities.tolist(), classes.tolist(), strict=True):
            yield Prediction(next(remaining), card.class_names[label], probability)


def _pictures(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"'{path}' is neither a picture nor a folder")
    found = pictures_below(path)
    if not found:
        raise InputError(f"no pictures in '{path}'")
    return found
