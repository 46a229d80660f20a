"""What an evaluated run keeps about each test image: enough for its report and for comparisons, without the network.

Letters in shapes: N images, E experts, C classes.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from longtail.evaluation.label_errors import output_doubts
from longtail.evaluation.metrics import BLOCK, image_metrics
from longtail.evaluation.outputs import ModelOutputs
from longtail.evaluation.routing import prefix_predictions
from longtail.utils.ensembles import ensemble
from longtail.utils.errors import InputError
from longtail.utils.files import read_tensors, write_tensors

OUTPUTS_FILE = "outputs.safetensors"

MAX_DOUBT_NUMBERS = 50_000_000
"""Labels are judged if there are at most so many logits (N * C): 200 MB, and a few seconds"""


class ImageOutputs(NamedTuple):
    """The outputs of a model for N test images, reduced to predictions."""

    labels: Tensor
    """(N,)"""

    prefixes: Tensor
    """Classes predicted by the ensembles of the first 1 to E experts, (N, E); the last is the model's prediction"""

    experts: Tensor
    """Classes predicted by each expert alone, (N, E)"""

    expert_probabilities: Tensor
    """Of the experts' predictions, at the model's temperature, (N, E)"""

    probabilities: Tensor
    """Of the model's predictions, (N,)"""

    uncalibrated: Tensor
    """The same at temperature 1, (N,)"""

    router_logits: Tensor | None = None
    """(N, E - 1); None if the model has no router"""

    log_odds: Tensor | None = None
    """How doubtful each label is (N,), see `longtail.evaluation.label_errors`; None if labels were not judged"""

    suggested: Tensor | None = None
    """The most probable other class, (N,)"""

    test_images: str = ""
    """`longtail.data.splits.ImageSplit.fingerprint` of the images"""

    @property
    def predictions(self) -> Tensor:
        """The model's predictions, (N,)."""
        return self.prefixes[:, -1]


def image_outputs(outputs: ModelOutputs, test_images: str, learned_log_prior: Tensor | None = None) -> ImageOutputs:
    """Reduces the outputs of a model.

    Args:
        outputs: of the model for N images.
        test_images: fingerprint of the images.
        learned_log_prior: the class shares that the experts assume, to judge labels; (E, C) or (1, C). None: labels are
            not judged.
    """
    ensembles = (ensemble(block, outputs.average) for block in torch.split(outputs.logits, BLOCK))
    metrics = image_metrics(ensembles, outputs.labels, outputs.temperature)
    best = [block.max(dim=2) for block in torch.split(outputs.logits, BLOCK)]
    log_sums = [(block / outputs.temperature).logsumexp(dim=2) for block in torch.split(outputs.logits, BLOCK)]
    log_probabilities = torch.cat([part.values for part in best]) / outputs.temperature - torch.cat(log_sums)
    doubts = None
    if learned_log_prior is not None and len(outputs.labels) * outputs.logits.shape[2] <= MAX_DOUBT_NUMBERS:
        doubts = output_doubts(outputs, learned_log_prior)
    return ImageOutputs(
        outputs.labels,
        prefix_predictions(outputs.logits, outputs.average),
        torch.cat([part.indices for part in best]),
        log_probabilities.exp(),
        metrics.confidences.float(),
        metrics.uncalibrated.float(),
        outputs.router_logits,
        None if doubts is None else doubts.log_odds,
        None if doubts is None else doubts.suggested,
        test_images,
    )


def save_image_outputs(path: Path, outputs: ImageOutputs) -> None:
    """Writes the outputs to a file.

    Raises:
        InputError: the disk is full or the folder is not writable. An earlier file is unchanged.
    """
    tensors = {name: value for name, value in outputs._asdict().items() if isinstance(value, Tensor)}
    for name in ("labels", "prefixes", "experts", "suggested"):
        if name in tensors and max(int(outputs.labels.max()), int(tensors[name].max())) < 2**15:
            tensors[name] = tensors[name].to(torch.int16)
    write_tensors(path, tensors, {"test_images": outputs.test_images})


def load_image_outputs(path: Path) -> ImageOutputs:
    """Reads a file of `save_image_outputs`.

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    tensors, metadata = read_tensors(path)
    classes = ("labels", "prefixes", "experts", "suggested")
    tensors = {name: value.long() if name in classes else value for name, value in tensors.items()}
    try:
        return ImageOutputs(**tensors, test_images=str(metadata["test_images"]))
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{path}: holds no outputs of an evaluation; 'longtail evaluate RUN' writes it again"
        ) from error
