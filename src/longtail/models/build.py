"""`Config` -> what the network is, and what it is trained for."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm

from longtail.config.schema import Config
from longtail.data.build import preprocessing
from longtail.data.samplers import POWERS, class_probabilities
from longtail.data.splits import Dataset
from longtail.evaluation.label_shift.adjustment import learned_log_prior
from longtail.evaluation.label_shift.report import LearnedPrior
from longtail.losses import (
    CrossEntropyLoss,
    DistilledLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    RIDELoss,
    log_prior,
)
from longtail.models.backbones import input_format
from longtail.models.compiled import compiled
from longtail.models.multi_expert import MultiExpert
from longtail.runtime.device import Runtime
from longtail.training.schedules import epoch_of
from longtail.training.tasks import DistillExperts, TrainExperts, teaching
from longtail.utils.errors import InputError

_NUM_CLASSES = {
    "digits": 10,
    "cifar10": 10,
    "cifar100": 100,
    "imagenet-lt": 1000,
    "inaturalist2018": 8142,
    "places-lt": 365,
}
_IMAGE_SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32}


def architecture(config: Config, dataset: Dataset) -> dict[str, Any]:
    """The arguments of `longtail.create_model`, but for where weights come from."""
    return _architecture(config, dataset.num_classes, preprocessing(config, dataset).image_size)


def planned_architecture(config: Config, num_classes: int | None = None) -> dict[str, Any]:
    """What `architecture` will be in the end, from the data set's name alone: with the last classifiers and the router.

    ``num_classes`` is for a data set whose name says nothing.

    Raises:
        InputError: the number of classes is not known.
    """
    name = config.data.name
    classes = _NUM_CLASSES.get(name) if num_classes is None else num_classes
    if classes is None:
        raise InputError(f"how many classes data set '{name}' has is not known without its data; give --num_classes")
    router = {"router": router_options(config)} if config.router.train else {}
    return _architecture(config, classes, _planned_image_size(config)) | classifier_options(config) | router


def _planned_image_size(config: Config) -> int:
    """The `preprocessing`'s."""
    data = config.data
    return data.image_size or _IMAGE_SIZES.get(data.name) or input_format(config.model.backbone).image_size


def _architecture(config: Config, num_classes: int, image_size: int) -> dict[str, Any]:
    model = config.model
    # What is not used stays out: not every network takes it.
    drops = {name: rate for name in ("drop_rate", "drop_path_rate") if (rate := getattr(model, name))}
    average = {} if config.evaluation.average == "logits" else {"average": config.evaluation.average}
    return {
        "name": model.backbone,
        "num_classes": num_classes,
        "num_experts": model.num_experts,
        "width": model.width,
        "head": model.head,
        "scale": model.scale,
        "expert_stages": model.expert_stages,
        "image_size": image_size,
        **drops,
        **average,
    }


def classifier_options(config: Config) -> dict[str, Any]:
    """What the classifiers that are made after the experts change in the `architecture`."""
    how = config.classifier
    if how.method != "nearest-mean":
        return {}
    return {"head": "cosine", "scale": config.model.scale} if how.distance == "cosine" else {"head": "linear"}


def router_options(config: Config) -> dict[str, Any]:
    """The arguments of `longtail.models.multi_expert.create_router`."""
    router = config.router
    return {name: getattr(router, name) for name in ("top_choices", "hidden", "shared", "threshold")}


def for_training(config: Config, model: MultiExpert, runtime: Runtime) -> MultiExpert:
    """The same weights in the form that they are trained in.

    Raises:
        InputError: the settings ask for what the machine cannot do.
    """
    training, cuda = config.training, runtime.device.type == "cuda"
    if training.sync_batch_norm and runtime.group.size > 1:
        if not cuda:
            raise InputError("training.sync_batch_norm is true, which needs GPUs; on the CPU it must be false")
        convert_sync_batchnorm(model)  # in place, as the model itself is no batch norm
    return compiled(model) if training.compile else model


def experts_task(
    config: Config, class_counts: list[int], model: MultiExpert, teacher: MultiExpert | None
) -> TrainExperts:
    """Stage 1, with or without a teacher."""
    loss, how = criterion(config, class_counts), config.distillation
    if teacher is None:
        return TrainExperts(model, loss)
    distilled = DistilledLoss(loss, temperature=how.temperature, factor=how.factor, published=how.published)
    return DistillExperts(model, distilled, teaching(teacher))


def criterion(config: Config, class_counts: list[int]) -> CrossEntropyLoss:
    """The loss of the experts."""
    loss = config.loss
    after = loss.reweight_after
    options: dict[str, Any] = {
        "reweight_after": None if after is None else epoch_of(after, config.training.epochs),
        "reweight_beta": loss.reweight_beta,
        "collaborative": loss.collaborative,
    }
    if loss.name == "cross_entropy":
        return CrossEntropyLoss(class_counts, **options)
    if loss.name == "focal":
        return FocalLoss(class_counts, gamma=loss.focal_gamma, **options)
    if loss.name == "logit_adjustment":
        exponents = {name: getattr(loss, name) for name in ("prior_exponents", "inverse_exponents")}
        return LogitAdjustedLoss(class_counts, **exponents, **options)
    options |= {"max_margin": loss.max_margin, "scale": config.model.scale}
    if loss.name == "ldam":
        return LDAMLoss(class_counts, **options)
    return RIDELoss(
        class_counts,
        diversity_factor=loss.diversity_factor,
        diversity_mean=loss.diversity_mean,
        diversity_temperature=loss.diversity_temperature,
        temperature_spread=loss.temperature_spread,
        **options,
    )


def learned_prior(config: Config, class_counts: Sequence[int], classifier: str, epoch: int) -> LearnedPrior:
    """How common a model that was trained with these settings takes each class to be.

    Args:
        config: of the run.
        class_counts: training images of each class, C numbers.
        classifier: method by which its heads were made afterwards, if any; all of them make classes equally common.
        epoch: up to which its experts were trained.

    Raises:
        InputError: a class has no training images.
    """
    if min(class_counts) < 1:
        raise InputError(
            f"class {list(class_counts).index(min(class_counts))} has no training images: how common the experts take "
            "it to be is not known"
        )
    if classifier:
        doubt = (
            "" if classifier in ("retrain", "scale") else f"classifiers of method {classifier} yield no probabilities"
        )
        return LearnedPrior(torch.zeros(1, len(class_counts)), doubt)
    loss, training, augmentation = config.loss, config.training, config.augmentation
    used = criterion(config, list(class_counts))
    exponents = ("prior_exponents", "inverse_exponents") if isinstance(used, LogitAdjustedLoss) else ()
    weights = used.weights if used.is_reweighted(epoch) else None
    learned = learned_log_prior(
        class_counts, class_weights=weights, **{name: getattr(loss, name) for name in exponents}
    )
    if training.sampling != "shuffled":
        power = POWERS.get(training.sampling, 0.0)  # progressive ends class-balanced
        learned = learned + class_probabilities(class_counts, power).log().float() - log_prior(class_counts)
    doubts = {
        f"the {loss.name} loss does not make the answers probabilities": loss.name in ("ldam", "ride", "focal"),
        "class weights came late in training": weights is not None and used.reweight_after != 0,
        "draws became class-balanced late in training": training.sampling == "progressive",
        "targets were mixed or smoothed": bool(augmentation.mixup or augmentation.cutmix or loss.label_smoothing),
        "experts were trained together, not each by itself": loss.collaborative,
        "a teacher was followed": config.teacher is not None,
    }
    return LearnedPrior(learned, "; ".join(doubt for doubt, applies in doubts.items() if applies))
