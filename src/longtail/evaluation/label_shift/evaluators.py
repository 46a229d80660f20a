"""Evaluation with class shares that differ from those of training: known ones, and label shift."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longtail.evaluation.label_shift.adjustment import adjust_to_prior, aggregation_weights
from longtail.evaluation.label_shift.learned_prior import LearnedPrior, learned_prior
from longtail.evaluation.label_shift.priors import read_prior
from longtail.evaluation.label_shift.subsets import RATIOS, label_shifts, valid_ratios
from longtail.evaluation.metrics import Evaluation
from longtail.evaluation.outputs import ModelOutputs, collect_outputs, evaluate_outputs
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import EvalSplit, RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.utils.choices import Average
from longtail.utils.ensembles import ensemble, weighted_ensemble


class PriorTest:
    """Evaluation with logits that are adjusted to known class shares. The constructor finds errors.

    Args:
        context: of the run.
        metadata: of its model.
        split: the images.
        prior: "uniform" or a file, see `longtail.evaluation.label_shift.priors.read_prior`.

    Raises:
        InputError: the file does not fit the classes, or a class has no training images.
    """

    def __init__(self, context: RunContext, metadata: ModelMetadata, split: EvalSplit, prior: str | Path):
        self.context, self.metadata, self.split, self.prior = context, metadata, split, str(prior)
        self.shares = read_prior(prior, metadata.class_names)
        self.learned = learned_prior(context.config, metadata.class_counts, metadata.classifier, metadata.epoch)

    def evaluate(self, outputs: ModelOutputs) -> Evaluation:
        """Returns the metrics of the adjusted logits; ``outputs`` are those of the split."""
        test_log_prior = torch.from_numpy(self.shares).log().float()
        logits = adjust_to_prior(outputs.logits, self.learned.log_prior, test_log_prior)
        settings = self.context.config.evaluation
        # The model's temperature was chosen for the logits before the adjustment.
        adjusted = outputs._replace(logits=logits, temperature=1.0)
        return evaluate_outputs(adjusted, self.metadata.class_counts, settings)


class LabelShiftTest:
    """Evaluation on long-tailed subsets of the images. The constructor finds errors.

    Args:
        context: of the run.
        metadata: of its model.
        split: the images.

    Raises:
        InputError: a class has fewer than two images in the split, or none for training.
    """

    def __init__(self, context: RunContext, metadata: ModelMetadata, split: EvalSplit):
        self.context, self.metadata, self.split = context, metadata, split
        images = context.dataset.val if split == "val" else context.dataset.test
        assert images is not None
        self.images = images
        self.learned = learned_prior(context.config, metadata.class_counts, metadata.classifier, metadata.epoch)
        valid_ratios(images.labels, metadata.class_names)

    def evaluate(self, model: MultiExpert, outputs: ModelOutputs) -> "LabelShiftReport | None":
        """Returns the scores, or None in processes that do not write. All processes must call it.

        Args:
            model: on the device.
            outputs: of the model on the split.
        """
        context, views = self.context, None
        if model.num_experts > 1:
            loader = context.loaders.views(self.images, context.config.training.batch_size)
            first, second = (collect_outputs(model, loader, context.runtime.group, epoch).logits for epoch in (1, 2))
            views = first, second
        if not context.run.writes:
            return None
        return evaluate_label_shift(outputs, self.metadata.class_counts, self.learned, views)


@dataclass(frozen=True)
class ShiftedScores:
    """Accuracies, from 0 to 1, on one subset. They are not balanced."""

    distribution: str
    """Such as forward-50, uniform, backward-2; see `longtail.evaluation.label_shift.subsets.label_shifts`"""

    num_images: int

    mean: float
    """Ensemble of all experts"""

    known_prior: float
    """Ensemble after adjustment to the class shares of the subset"""

    aggregated: float | None
    """Experts weighted by test-time aggregation (SADE); None for one expert"""

    weights: tuple[float, ...] | None
    """These weights (E)"""

    experts: tuple[float, ...]
    """Each expert (E)"""


@dataclass(frozen=True)
class LabelShiftReport:
    """Scores on subsets from the class shares of training to the opposite ones."""

    rows: tuple[ShiftedScores, ...]

    left_out: tuple[int, ...]
    """Ratios for which a class has too few images"""

    approximation: str
    """See `LearnedPrior`"""

    alike: bool
    """Whether all experts assume the same class shares, so that aggregation has no different skills to choose from"""

    average: Average
    """How the ensemble averages the experts"""


def evaluate_label_shift(
    outputs: ModelOutputs,
    class_counts: Sequence[int],
    learned: LearnedPrior,
    views: tuple[Tensor, Tensor] | None,
    ratios: Sequence[int] = RATIOS,
) -> LabelShiftReport:
    """Evaluates outputs on subsets with other class shares.

    Args:
        outputs: of the model, for N images.
        class_counts: training images of each class, C numbers.
        learned: class shares that the experts assume.
        views: expert logits of two augmented views of the images, (N, E, C) each; None for one expert.
        ratios: of the most common class to the rarest.

    Raises:
        InputError: a class has too few images for all ratios.
    """
    all_labels, average = outputs.labels, outputs.average
    valid = valid_ratios(all_labels.numpy(), range(len(class_counts)), ratios)
    rows = []
    for name, subset in label_shifts(all_labels.numpy(), class_counts, valid).items():
        positions = torch.from_numpy(subset.positions)
        logits, labels = outputs.logits[positions], all_labels[positions]
        adjusted = adjust_to_prior(logits, learned.log_prior, torch.from_numpy(subset.prior).log().float())
        weights = aggregated = None
        if views is not None:
            weights = aggregation_weights(views[0][positions], views[1][positions], average)
            aggregated = _accuracy(weighted_ensemble(logits, weights, average), labels)
        rows.append(
            ShiftedScores(
                distribution=name,
                num_images=len(positions),
                mean=_accuracy(ensemble(logits, average), labels),
                known_prior=_accuracy(ensemble(adjusted, average), labels),
                aggregated=aggregated,
                weights=None if weights is None else tuple(weights.tolist()),
                experts=tuple(_accuracy(expert, labels) for expert in logits.unbind(dim=1)),
            )
        )
    left_out = tuple(ratio for ratio in ratios if ratio not in valid)
    alike = bool((learned.log_prior == learned.log_prior[0]).all())
    return LabelShiftReport(tuple(rows), left_out, learned.approximation, alike, average)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())
