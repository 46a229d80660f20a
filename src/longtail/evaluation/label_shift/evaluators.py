"""Tests of a model where classes are not as common as it takes them to be: a known prior, and label shift."""

from pathlib import Path
from typing import Any

import torch

from longtail.data import build as data_build
from longtail.evaluation.evaluator import Part
from longtail.evaluation.label_shift.adjustment import adjust_to_prior
from longtail.evaluation.label_shift.priors import UNIFORM, read_prior
from longtail.evaluation.label_shift.report import LabelShiftReport, fitting_ratios
from longtail.evaluation.outputs import Answers, answers, evaluate_answers
from longtail.models import build as model_build
from longtail.models.multi_expert import MultiExpert
from longtail.reports.page import label_shift_summary, summary, write_label_shift
from longtail.runs.context import Workplace
from longtail.runs.model_file import ModelCard


class PriorTest:
    """How accurate experts are that are told how common each class is among the images. Making it reads the prior.

    Args:
        place: of the run.
        card: of its model.
        split: the images.
        prior: see `longtail.evaluation.label_shift.priors.read_prior`.

    Raises:
        InputError: it is no prior of these classes, or how common the experts take them to be is not known.
    """

    def __init__(self, place: Workplace, card: ModelCard, split: Part, prior: str | Path):
        self.place, self.card, self.split = place, card, split
        self.shares = read_prior(prior, card.class_names)
        self.learned = model_build.learned_prior(place.config, card.class_counts, card.classifier, card.epoch)
        self.name = "equally common classes" if str(prior) == UNIFORM else f"the prior of {prior}"

    def tell(self, given: Answers) -> None:
        """Prints it, and writes prior.json."""
        config, card, learned = self.place.config, self.card, self.learned
        logits = adjust_to_prior(given.logits, learned.log_prior, torch.from_numpy(self.shares).log().float())
        evaluation = evaluate_answers(given._replace(logits=logits), card.class_counts, config)
        shots: dict[str, Any] = {name: getattr(config.evaluation, name) for name in ("many_above", "few_below")}
        title = f"{config.name}: {self.split} images, adjusted to {self.name}"
        self.place.console.print(summary(evaluation, title, **shots, average=given.average))
        if learned.approximation:
            self.place.say(f"The adjustment is approximate: {learned.approximation}")
        told = {"part": self.split, "prior": self.shares.tolist(), "approximation": learned.approximation}
        self.place.run.write_json("prior.json", told | evaluation.as_dict())


class LabelShiftTest:
    """How accurate a model is on long-tailed parts of the images. Making it finds out whether there are any.

    Args:
        place: of the run.
        card: of its model.
        split: the images.

    Raises:
        InputError: a class has too few images, or how common the experts take classes to be is not known.
    """

    def __init__(self, place: Workplace, card: ModelCard, split: Part):
        self.place, self.card, self.split = place, card, split
        images = place.dataset.val if split == "val" else place.dataset.test
        assert images is not None
        self.images = images
        self.learned = model_build.learned_prior(place.config, card.class_counts, card.classifier, card.epoch)
        fitting_ratios(torch.from_numpy(images.labels), len(card.class_names))

    def tell(self, model: MultiExpert, given: Answers) -> None:
        """Prints it, and writes label_shift.json and label_shift.md. All processes take part."""
        place, views = self.place, None
        if model.num_experts > 1:
            loader = data_build.views_loader(place.config, place.dataset, self.images, place.runtime)
            one, other = (answers(model, loader, place.runtime.group, epoch).logits for epoch in (1, 2))
            views = one, other
        if not place.run.writes:  # one process counts and reports
            return
        said = given.logits, given.labels
        report = LabelShiftReport.of(*said, self.card.class_counts, self.learned, views, average=given.average)
        title = f"{place.config.name}: label shift of the {self.split} images"
        place.console.print(label_shift_summary(report, title))
        place.run.write_json("label_shift.json", {"part": self.split, **report.as_dict()})
        write_label_shift(place.run.folder, report, title)
        also = "" if views is None else ", with the experts' weights"
        place.say(f"Also written to {place.run.folder / 'label_shift.md'}{also}")
