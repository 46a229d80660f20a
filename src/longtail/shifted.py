"""Tests of a model where classes are not as common as it takes them to be: a known prior, and label shift."""

from pathlib import Path

import torch

from longtail import build
from longtail.checkpoint import ModelCard
from longtail.data.priors import read_prior
from longtail.evaluation import Answers, answers, evaluate_answers
from longtail.label_shift_report import LabelShiftReport
from longtail.models.experts import MultiExpert
from longtail.report import label_shift_summary, summary, write_label_shift
from longtail.stages import Workplace
from longtail.test_time import adjust_to_prior
from longtail.testing import Part


def tested_with_prior(place: Workplace, card: ModelCard, given: Answers, split: Part, prior: str | Path) -> None:
    """Prints, and writes to prior.json, how accurate experts are that know how common each class is among the images.

    Raises:
        InputError: the prior is no prior of these classes.
    """
    config, shares = place.config, read_prior(prior, card.class_names)
    learned = build.learned_prior(config, card.class_counts, card.classifier, card.epoch)
    logits = adjust_to_prior(given.logits, learned.log_prior, torch.from_numpy(shares).log().float())
    evaluation = evaluate_answers(given._replace(logits=logits), card.class_counts, config)
    shots = {"many_above": config.evaluation.many_above, "few_below": config.evaluation.few_below}
    name = "equally common classes" if str(prior) == "uniform" else f"the prior of {prior}"
    place.console.print(summary(evaluation, f"{config.name}: {split} images, adjusted to {name}", **shots))
    if learned.approximation:
        place.say(f"The adjustment is approximate: {learned.approximation}")
    told = {"part": split, "prior": shares.tolist(), "approximation": learned.approximation, **evaluation.as_dict()}
    place.run.write_json("prior.json", told)


def tested_under_label_shift(
    place: Workplace, model: MultiExpert, card: ModelCard, given: Answers, split: Part
) -> None:
    """Prints, and writes to label_shift.json and label_shift.md, the accuracies on long-tailed parts of the images.

    Raises:
        InputError: a class has too few images.
    """
    config, dataset = place.config, place.dataset
    learned = build.learned_prior(config, card.class_counts, card.classifier, card.epoch)
    views = None
    if model.num_experts > 1:
        images = dataset.val if split == "val" else dataset.test
        assert images is not None
        loader = build.views_loader(config, dataset, images, place.runtime)
        one, other = (answers(model, loader, place.runtime.group, epoch).logits for epoch in (1, 2))
        views = one, other
    if place.run.writes:  # one process counts and reports
        report = LabelShiftReport.of(given.logits, given.labels, card.class_counts, learned, views)
        place.console.print(label_shift_summary(report, f"{config.name}: label shift of the {split} images"))
        place.run.write_json("label_shift.json", {"part": split, **report.as_dict()})
        write_label_shift(place.run.folder, report, config.name, split)
