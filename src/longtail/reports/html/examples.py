"""Which test images the report page shows: the surest mistakes, disagreements, confused classes, doubtful labels.

Letters in shapes: N images, E experts, C classes.
"""

from collections import Counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longtail.evaluation.image_outputs import ImageOutputs
from longtail.evaluation.label_errors import most_doubtful
from longtail.evaluation.metrics import Evaluation

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


def confused_pairs(evaluation: Evaluation, limit: int = NUM_PAIRS) -> list[list[tuple[int, int, int]]]:
    """Returns the pairs of classes that are most often taken for each other: (true, predicted, images), both ways."""
    errors = {(e["true"], e["predicted"]): e["count"] for e in evaluation.frequent_confusions(evaluation.num_images)}
    both = Counter[tuple[int, int]]()
    for (true, predicted), count in errors.items():
        both[min(true, predicted), max(true, predicted)] += count
    pairs = sorted(both, key=lambda pair: (-both[pair], pair))[:limit]
    return [[(*side, errors.get(side, 0)) for side in (pair, pair[::-1])] for pair in pairs]


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
