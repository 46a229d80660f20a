"""The stage after the experts: other classifiers on their fixed features (decoupled training)."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longtail.data.loaders import Loader
from longtail.evaluation.metrics import score
from longtail.evaluation.outputs import Features, collect_features
from longtail.models.build import head_options
from longtail.models.decoupled_heads import ScaledClassifier, nearest_mean_heads, tau_normalised
from longtail.models.heads import create_heads, initialise_like
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.training.checkpoint import Checkpoint, stage_checkpoint
from longtail.training.frozen_stage import TrainedStage, train_on_frozen
from longtail.training.tasks import TrainHeads
from longtail.utils.choices import Average
from longtail.utils.ensembles import ensemble
from longtail.utils.errors import InputError
from longtail.utils.files import read_tensors

logger = logging.getLogger(__name__)

TAUS = [number / 10 for number in range(21)]
"""The candidates for tau: 0, 0.1, ..., 2, as in the original code"""

BLOCK = 1024
"""Images whose logits exist at a time during the choice of tau"""


class NewHeads(NamedTuple):
    """New heads, one for each expert."""

    heads: Sequence[nn.Module]
    info: dict[str, Any]
    """How they were made, JSON-ready"""


class Source(NamedTuple):
    """What new heads are made from."""

    context: RunContext
    model: MultiExpert
    """With the experts' own heads, in eval mode on the device"""
    val_loader: Loader | None
    checkpoint: Checkpoint
    kind: dict[str, Any]
    """Arguments of `create_heads` for heads of the same kind"""


def train_classifier(
    context: RunContext, model: MultiExpert, metadata: ModelMetadata, val_loader: Loader | None
) -> TrainedStage:
    """Replaces the heads of a trained model as the settings ask. Trunk and branches stay.

    New heads are always made from the experts' own heads, of which the run keeps a copy. Method none restores these. A
    router is removed, because it was trained on the outputs of other heads.

    Args:
        context: of the run.
        model: on the device.
        metadata: of the model.
        val_loader: images for the choice of tau, if the settings ask for it.

    Raises:
        InputError: the experts' own heads are missing; or a class has no images.
    """
    start, method = time.perf_counter(), context.config.classifier.method
    had_own_heads = not metadata.classifier
    metadata = _restore_own_heads(context, model, metadata)
    model.eval()
    model.router, model.temperature = None, 1.0  # both are for the outputs of other heads
    checkpoint = stage_checkpoint(context, "classifier", strict=False)
    if method == "none":
        return TrainedStage(metadata, {"method": method}, checkpoint)
    kind = _head_arguments(metadata.architecture)
    own_heads = (model.heads.state_dict(), kind) if had_own_heads else None
    heads, info = METHODS[method](Source(context, model, val_loader, checkpoint, kind))
    model.heads = nn.ModuleList(heads).to(context.runtime.device).eval()
    architecture = {**metadata.architecture, **head_options(context.config.classifier, context.config.model.scale)}
    metadata = replace(metadata, architecture=architecture, classifier=method)
    record = {"method": method, "seconds": time.perf_counter() - start, **info}
    return TrainedStage(metadata, record, checkpoint, own_heads)


def _restore_own_heads(context: RunContext, model: MultiExpert, metadata: ModelMetadata) -> ModelMetadata:
    """Gives the model the experts' own heads."""
    path = context.run.heads_path
    if not metadata.classifier:
        return replace(metadata, threshold_for="")
    if not path.is_file():
        raise InputError(f"{path} is missing: it held the experts' own classifiers, from which other ones are made")
    tensors, kind = read_tensors(path)
    try:
        with skip_init():
            heads = nn.ModuleList(create_heads(model.num_experts, model.num_features, model.num_classes, **kind))
        heads.load_state_dict(tensors)
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path}: not the classifiers of these experts ({' '.join(str(error).split())})") from error
    model.heads = heads.to(context.runtime.device)
    return replace(metadata, architecture={**metadata.architecture, **kind}, threshold_for="", classifier="")


def _head_arguments(architecture: Mapping[str, Any]) -> dict[str, Any]:
    return {name: architecture[name] for name in ("head", "scale") if name in architecture}


def _retrained(source: Source) -> NewHeads:
    """Classifier re-training (cRT): new heads of the same kind."""
    model = source.model
    with source.context.seeded_init():
        heads = create_heads(model.num_experts, model.num_features, model.num_classes, **source.kind)
        for head in heads:
            initialise_like(head, model.trunk)
    return NewHeads(heads, {"epochs": _train(source, heads)})


def _scaled(source: Source) -> NewHeads:
    """Learnable weight scaling (LWS): one factor for each class."""
    heads = [ScaledClassifier(head) for head in source.model.heads]  # type: ignore[arg-type]
    records = _train(source, heads)
    return NewHeads([head.to_linear() for head in heads], {"epochs": records})


def _train(source: Source, heads: Sequence[nn.Module]) -> list[dict[str, Any]]:
    task = TrainHeads(heads).to(source.context.runtime.device)
    return train_on_frozen(source.context, source.model, task, "classifier", source.checkpoint, nesterov=False)


def _tau_normalised(source: Source) -> NewHeads:
    """Tau from the settings, or the smallest with the best balanced accuracy of the ensemble on validation images."""
    model, tau, info = source.model, source.context.config.classifier.tau, {}
    if tau is None:
        assert source.val_loader is not None
        features = collect_features(model, source.val_loader, source.context.runtime.group)
        by_tau = {
            tau: _balanced_accuracy([tau_normalised(head, tau).cpu() for head in model.heads], features, model.average)
            for tau in TAUS
        }
        tau = max(by_tau, key=lambda tau: by_tau[tau])
        logger.info("Chose tau %g on the validation images: balanced accuracy %.1f%%", tau, 100 * by_tau[tau])
        info = {"balanced_val_accuracy": {f"{tau:g}": value for tau, value in by_tau.items()}}
    return NewHeads([tau_normalised(head, tau) for head in model.heads], {"tau": tau, **info})


def _balanced_accuracy(heads: Sequence[nn.Module], features: Features, average: Average) -> float:
    with torch.inference_mode():
        logits = (_logits(heads, block) for block in torch.split(features.features, BLOCK))
        predictions = [ensemble(block, average).argmax(dim=1) for block in logits]
    num_classes = heads[0].weight.shape[0]  # type: ignore[union-attr,index]
    return score(torch.cat(predictions), features.labels, [0] * num_classes).balanced


def _logits(heads: Sequence[nn.Module], features: Tensor) -> Tensor:
    """(B, E, D) -> (B, E, C)."""
    pairs = zip(heads, features.unbind(dim=1), strict=True)
    return torch.stack([head(expert_features) for head, expert_features in pairs], dim=1)


def _nearest_mean(source: Source) -> NewHeads:
    """Nearest class mean (NCM), from one pass over all training images without augmentation."""
    context, model = source.context, source.model
    loader = context.eval_loader(context.dataset.train)
    features = collect_features(model, loader, context.runtime.group)
    distance, scale = context.config.classifier.distance, context.config.model.scale
    heads = nearest_mean_heads(features.features, features.labels, model.num_classes, distance, scale)
    return NewHeads(heads, {"distance": distance})


METHODS: dict[str, Callable[[Source], NewHeads]] = {
    "retrain": _retrained,
    "scale": _scaled,
    "tau": _tau_normalised,
    "nearest-mean": _nearest_mean,
}
