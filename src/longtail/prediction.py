"""Classify pictures with a trained model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from longtail.data.file_loader import FileLoader
from longtail.data.files import pictures_below, tell_of_others
from longtail.data.loading import Normalise
from longtail.data.splits import Split, as_paths
from longtail.data.transforms import eval_transform
from longtail.errors import InputError, raise_all
from longtail.model_file import load_model_file, model_file
from longtail.models.folding import folded
from longtail.runtime import Precision, Runtime, pick_device


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
        device: where to.
        precision: of matrix products and convolutions. Half of it is faster on hardware with instructions for it, and
            changes answers that stand between two classes, and between asking one more expert and not.
        all_experts: ask all of them, whatever the router says; so do models without one.
        top: how many classes are wanted for each picture, the most likely first.
        workers: processes that decode, where there are more pictures than a batch; 0 decodes in this one.

    Raises:
        InputError: no model, no picture, a number that cannot be; or, after all others have been classified, pictures
            that cannot be decoded.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("top", top, 1), ("workers", workers, 0)):
        if value < least:
            raise InputError(f"{name} is {value}; it must be at least {least}")
    network, card = load_model_file(model_file(model))
    runtime = Runtime(pick_device(device), precision)
    paths = find_pictures(pictures)
    several = len(paths) > batch_size
    if several:  # folding takes about as long as a batch or less
        network = folded(network, card.image_size)
    network.to(runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    problems: list[str] = []
    loader = FileLoader(
        Split(np.arange(len(paths)), paths=as_paths(paths)),  # which ones are in a batch: not all may decode
        eval_transform(card.image_size, card.resize, card.interpolation),
        batch_size,
        device=runtime.device,
        normalise=Normalise(card.mean, card.std, runtime.device),
        seed=0,
        shuffle=False,
        workers=workers if several else 0,
        on_bad_image=lambda error: problems.append(str(error)),
    )
    for images, positions in loader.epoch(0):
        with torch.inference_mode(), runtime.tf32(True), runtime.autocast():  # as models are tested
            routed = network.router is not None and not all_experts
            logits = network.route(images).logits if routed else network.answer(images)
            found = logits.softmax(dim=1).topk(min(top, network.num_classes))
        for position, *best in zip(positions.tolist(), found.indices.tolist(), found.values.tolist(), strict=True):
            first, *others = (Choice(card.class_names[k], probability) for k, probability in zip(*best, strict=True))
            yield Prediction(paths[position], *first, tuple(others))
    raise_all(problems)


def find_pictures(places: Sequence[str | Path]) -> list[Path]:
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
    found, others = pictures_below(path)
    tell_of_others(path, others)
    if not found:
        raise InputError(f"no pictures in '{path}'")
    return found
