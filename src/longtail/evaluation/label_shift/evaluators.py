"""Tests of a model where classes are not as common as it takes them to be: a known prior, and label shift."""

from pathlib import Path
from typing import Any

import torch

from longtail.data import build as data_build
from longtail.evaluation.evaluator import Part
from longtail.evaluation.label_shift.adjustment import adjust_to_prior
from longtail.evaluation.label_shift.priors import UNIFORM, read_prior
from longtail.evaluation.label_shift.report import LabelShiftReport, valid_ratios
from longtail.evaluation.outputs import ModelOutputs, collect_outputs, evaluate_outputs
from longtail.models import build as model_build
from longtail.models.multi_expert import MultiExpert
from longtail.reports.page import label_shift_summary, summary, write_label_shift
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata


class PriorTest:
    """How accurate experts are that are told how common each class is among the images. Making it reads the prior.

    Args:
        context: of the run.
        metadata: of its model.
        split: the images.
        prior: see `longtail.evaluation.label_shift.priors.read_prior`.

    Raises:
        InputError: it is no prior of these classes, or how common the experts take them to be is not known.
    """

    def __init__(self, context: RunContext, metadata: ModelMetadata, split: Part, prior: str | Path):
        self.context, self.metadata, self.split = context, metadata, split
        self.shares = read_prior(prior, metadata.class_names)
        self.learned = model_build.learned_prior(
            context.config, metadata.class_counts, metadata.classifier, metadata.epoch
        )
        self.name = "equally common classes" if str(prior) == UNIFORM else f"the prior of {prior}"

    def tell(self, given: ModelOutputs) -> None:
        """Prints it, and writes prior.json."""
        config, metadata, learned = self.context.config, self.metadata, self.learned
        logits = adjust_to_prior(given.logits, learned.log_prior, torch.from_numpy(self.shares).log().float())
        evaluation = evaluate_outputs(given._replace(logits=logits), metadata.class_counts, config)
        shots: dict[str, Any] = {name: getattr(config.evaluation, name) for name in ("many_above", "few_below")}
        title = f"{config.name}: {self.split} images, adjusted to {self.name}"
        self.context.console.print(summary(evaluation, title, **shots, average=given.average))
        if learned.approximation:
            self.context.say(f"The adjustment is approximate: {learned.approximation}")
        told = {"part": self.split, "prior": self.shares.tolist(), "approximation": learned.approximation}
        self.context.run.write_json("prior.json", told | evaluation.as_dict())


class LabelShiftTest:
    """How accurate a model is on long-tailed parts of the images. Making it finds out whether there are any.

    Args:
        context: of the run.
        metadata: of its model.
        split: the images.

    Raises:
        InputError: a class has too few images, or how common the experts take classes to be is not known.
    """

    def __init__(self, context: RunContext, metadata: ModelMetadata, split: Part):
        self.context, self.metadata, self.split = context, metadata, split
        images = context.dataset.val if split == "val" else context.dataset.test
        assert images is not None
        self.images = images
        self.learned = model_build.learned_prior(
            context.config, metadata.class_counts, metadata.classifier, metadata.epoch
        )
        valid_ratios(torch.from_numpy(images.labels), len(metadata.class_names))

    def tell(self, model: MultiExpert, given: ModelOutputs) -> None:
        """Prints it, and writes label_shift.json and label_shift.md. All processes take part."""
        context, views = self.context, None
        if model.num_experts > 1:
            loader = data_build.views_loader(context.config, context.dataset, self.images, context.runtime)
            one, other = (collect_outputs(model, loader, context.runtime.group, epoch).logits for epoch in (1, 2))
            views = one, other
        if not context.run.writes:  # one process counts and reports
            return
        said = given.logits, given.labels
        report = LabelShiftReport.of(*said, self.metadata.class_counts, self.learned, views, average=given.average)
        title = f"{context.config.name}: label shift of the {self.split} images"
        context.console.print(label_shift_summary(report, title))
        context.run.write_json("label_shift.json", {"part": self.split, **report.as_dict()})
        write_label_shift(context.run.folder, report, title)
        also = "" if views is None else ", with the experts' weights"
        context.say(f"Also written to {context.run.folder / 'label_shift.md'}{also}")
