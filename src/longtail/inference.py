"""Classification of images with a trained model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from longtail.data.loaders import Normalise
from longtail.data.predictions import ClassProbability, ImageClassifier, Pixels, Prediction
from longtail.data.views import NUM_VIEWS, make_views, source_size
from longtail.models.fuse import fuse_batch_norms
from longtail.runs.model_file import load_model_file, model_path
from longtail.runtime.device import Runtime, pick_device, warn_slow_precision
from longtail.utils.choices import Precision, Views
from longtail.utils.errors import check_choice


class Predictor(ImageClassifier):
    """A trained model in memory that classifies images, for example in a service.

    Batch norms are fused into convolutions, which is faster and changes the last digits of probabilities.

    Args:
        model: a run folder, a model file, or a model on the Hub: ``hf://owner/name``.
        device: where the model runs: auto, cpu, cuda, ...
        precision: of matrix products and convolutions. Half precision is faster on hardware that supports it; close
            decisions, between two classes or about one more expert, may change.
        all_experts: run all experts, whatever the router decides.
        views: of each image, over which the outputs are averaged; see `longtail.config.schema.EvaluationConfig`.

    Attributes:
        metadata: class names, image size and so on.

    Raises:
        InputError: there is no model, or no such device, precision or views; or images are too small for the views.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        precision: Precision = "float32",
        all_experts: bool = False,
        views: Views = "one",
    ):
        check_choice("precision", precision, get_args(Precision))
        check_choice("views", views, get_args(Views))
        network, self.metadata = load_model_file(model_path(model))
        form = self.metadata
        self._runtime = Runtime(pick_device(device), precision)
        warn_slow_precision(self._runtime.device, precision)
        network = fuse_batch_norms(network, form.image_size)
        self._network = network.to(self._runtime.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._is_routed = network.router is not None and not all_experts
        self._views: Views = views
        self._normalise = Normalise(form.mean, form.std, self._runtime.device)
        is_on_cpu = self._runtime.device.type == "cpu"
        side = source_size(views, form.image_size, form.resize)
        super().__init__(form, on_cpu=is_on_cpu, views=NUM_VIEWS[views], side=side)

    def _top_classes(self, pixels: Sequence[Pixels], top: int) -> list[list[ClassProbability]]:
        runtime, network, names = self._runtime, self._network, self.metadata.class_names
        images = self._normalise(torch.from_numpy(np.stack(pixels)).to(runtime.device).permute(0, 3, 1, 2))
        number, images = NUM_VIEWS[self._views], make_views(images, self._views, self.metadata.image_size)
        with torch.inference_mode(), runtime.tf32(True), runtime.autocast():  # as in evaluation
            if self._is_routed:
                logits = network.route(images, num_views=number).logits
            else:
                logits = network.predict_logits(images, number)
            classes = logits.topk(min(top, len(names))).indices
            probabilities = (logits / network.temperature).softmax(dim=1).gather(1, classes)
        rows = zip(classes.tolist(), probabilities.tolist(), strict=True)
        return [[ClassProbability(names[k], value) for k, value in zip(*row, strict=True)] for row in rows]


def predict(
    model: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    batch_size: int | None = None,
    device: str = "auto",
    precision: Precision = "float32",
    all_experts: bool = False,
    views: Views = "one",
    top: int = 1,
    workers: int = 0,
) -> Iterator[Prediction]:
    """Classifies image files in order, with as many experts as the model's router chooses.

    Args:
        model: a run folder, a model file, or a model on the Hub: ``hf://owner/name``.
        images: image files, or folders that are searched for images.
        batch_size: images in a batch, counting every view; None: 64, but fewer if a CPU classifies large images.
        device: where the model runs.
        precision: see `Predictor`.
        all_experts: run all experts, whatever the router decides.
        views: see `Predictor`.
        top: number of classes for each image, the most probable first.
        workers: threads that decode; 0: one for each processor, at most 8.

    Raises:
        InputError: there is no model or no image, or a number is out of range; or, after all other images were
            classified, images that do not decode.
    """
    predictor = Predictor(model, device=device, precision=precision, all_experts=all_experts, views=views)
    return predictor.predict(images, batch_size=batch_size, top=top, workers=workers)
