"""Which test images the report page shows: the surest mistakes, disagreements, confused classes, doubtful labels.

Letters in shapes: N images, E experts, C classes.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.evaluation.image_outputs import ImageOutputs
from longtail.evaluation.label_errors import most_doubtful

NUM_IMAGES = 18
"""Images of a section, at most"""

NUM_PAIRS, NUM_OF_A_CLASS = 6, 3
"""Pairs of confused classes, and images of each class of a pair, at most"""

Positions = list[int]


def surest_mistakes(outputs: ImageOutputs, limit: int = NUM_IMAGES) -> Positions:
    """Returns the positions of the wrong predictions with the highest probabilities, the surest first."""
    wrong = outputs.predictions != outputs.labels
    return _largest(outputs.probabilities, wrong, limit)


def disagreements(outputs: ImageOutputs, limit: int = NUM_IMAGES) -> Positions:
    """Returns the positions of the images on which most pairs of experts disagree.

    Of those with equally many pairs, the images on which the experts are the surest come first.
    """
    num_experts = outputs.experts.shape[1]
    first, second = torch.triu_indices(num_experts, num_experts, offset=1)
    pairs = (outputs.experts[:, first] != outputs.experts[:, second]).sum(dim=1)
    return _largest(pairs + outputs.expert_probabilities.mean(dim=1).nan_to_num(), pairs > 0, limit)


def wrong_labels(outputs: ImageOutputs, limit: int = NUM_IMAGES) -> Positions | None:
    """Returns the positions of labels that are likely to be wrong, the most doubtful first; None: not judged."""
    if outputs.log_odds is None:
        return None
    found: Positions = most_doubtful(outputs.log_odds.numpy(), outputs.labels.numpy())[:limit].tolist()
    return found


class ConfusedPair(NamedTuple):
    """Two classes that are taken for each other."""

    first: int
    second: int
    first_as_second: int
    """Images of the first class that are predicted to be of the second"""
    second_as_first: int


def confused_pairs(outputs: ImageOutputs, num_classes: int, limit: int = NUM_PAIRS) -> list[ConfusedPair]:
    """Returns the pairs of classes with the most images of one that are predicted to be of the other."""
    errors = confusions(outputs, num_classes)
    both: dict[tuple[int, int], int] = {}
    for (true, predicted), count in errors.items():
        pair = min(true, predicted), max(true, predicted)
        both[pair] = both.get(pair, 0) + count
    pairs = sorted(both, key=lambda pair: (-both[pair], pair))[:limit]
    return [ConfusedPair(*pair, errors.get(pair, 0), errors.get(pair[::-1], 0)) for pair in pairs]


def confusions(outputs: ImageOutputs, num_classes: int) -> dict[tuple[int, int], int]:
    """Returns the number of images for each pair of a true class and another predicted class that occurs."""
    labels, predicted = outputs.labels.numpy(), outputs.predictions.numpy()
    wrong = labels != predicted
    cells, counts = np.unique(labels[wrong] * num_classes + predicted[wrong], return_counts=True)
    return dict(
        zip(zip(*(part.tolist() for part in divmod(cells, num_classes)), strict=True), counts.tolist(), strict=True)
    )


def images_of(outputs: ImageOutputs, true: int, predicted: int, limit: int = NUM_OF_A_CLASS) -> Positions:
    """Returns images of a class that are predicted to be of another, the surest first.

    If there are too few, the least sure correct ones of the class follow.
    """
    of_class = outputs.labels == true
    chosen = _largest(outputs.probabilities, of_class & (outputs.predictions == predicted), limit)
    correct = of_class & (outputs.predictions == true)
    return chosen + _largest(-outputs.probabilities, correct, limit - len(chosen))


def _largest(values: Tensor, allowed: Tensor, limit: int) -> Positions:
    """Positions of the largest values among the allowed images; values that are not numbers come last."""
    positions: NDArray[np.int64] = torch.nonzero(allowed).squeeze(1).numpy()
    order = np.argsort(-values.double().nan_to_num(nan=-np.inf).numpy()[positions], kind="stable")
    return positions[order[:limit]].tolist()  # type: ignore[no-any-return]
