"""The stage after the experts: other classifiers on their features, which stay as they are (decoupled training)."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from longtail.data import build as data_build
from longtail.data.loaders import Loader
from longtail.evaluation.metrics import score
from longtail.evaluation.outputs import Features, features
from longtail.models import build as model_build
from longtail.models.decoupled_heads import ScaledClassifier, nearest_mean_heads, tau_normalised
from longtail.models.heads import create_heads, initialise_like
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata
from longtail.training import optim
from longtail.training.checkpoint import Checkpoint
from longtail.training.frozen import train_on_frozen
from longtail.training.tasks import TrainHeads
from longtail.utils.ensembles import Average, ensemble
from longtail.utils.errors import InputError
from longtail.utils.files import read_tensors, write_tensors

TAUS = [number / 10 for number in range(21)]
"""What tau is chosen from: 0, 0.1, ..., 2, as in the original code"""

BLOCK = 1024
"""Images whose logits exist at a time while tau is chosen"""


class NewHeads(NamedTuple):
    """New heads, one for each expert."""

    heads: Sequence[nn.Module]
    info: dict[str, Any]
    """What is to be info of them, JSON-ready"""


def train_classifier(
    context: RunContext, model: MultiExpert, metadata: ModelMetadata, val_loader: Loader | None
) -> ModelMetadata:
    """Gives a trained model the classifiers that the settings ask for; the run then holds it. Trunk and branches stay.

    It always starts from the experts' own heads, which the run keeps beside the model; method none gives them back. A
    router goes, because it was trained on the answers of other heads.

    Args:
        context: where to.
        model: on the device.
        metadata: of the model.
        val_loader: images to choose tau on, where the settings want that.

    Raises:
        InputError: the experts' own heads are not there any more; or a class has no images.
    """
    start, run, method = time.perf_counter(), context.run, context.config.classifier.method
    metadata = _with_own_heads(context, model, metadata)
    model.eval()
    model.router = None
    checkpoint = context.checkpoint("classifier", strict=False)
    if method != "none":
        heads, info = _new_heads(context, model, metadata, val_loader, checkpoint)
        model.heads = nn.ModuleList(heads).to(context.runtime.device).eval()
        architecture = {**metadata.architecture, **model_build.classifier_options(context.config)}
        metadata = replace(metadata, architecture=architecture, classifier=method)
        run.write_json("classifier.json", {"method": method, "seconds": time.perf_counter() - start, **info})
    for name in ("results.json", "router.json", "prior.json", "label_shift.json", "label_shift.md"):
        run.remove(name)  # what was said of the model before
    run.save_model(model, metadata)  # last: its description is what says that this stage is done
    checkpoint.remove()
    if method == "none":
        context.runtime.group.barrier()  # until all have read them
        run.remove("classifier.json")
        run.remove(run.heads_path.name)
    return metadata


def _with_own_heads(context: RunContext, model: MultiExpert, metadata: ModelMetadata) -> ModelMetadata:
    """Gives a model back the experts' own heads, of which the run keeps a copy; returns its description, unrouted."""
    path, architecture = context.run.heads_path, {k: v for k, v in metadata.architecture.items() if k != "router"}
    if not metadata.classifier:
        kind = _kind(architecture)
        if context.run.writes:
            write_tensors(path, model.heads.state_dict(), kind)
        return replace(metadata, architecture=architecture, threshold_for="")
    if not path.is_file():
        raise InputError(f"{path} is not there: it held the experts' own classifiers, from which others are made")
    tensors, kind = read_tensors(path)
    try:
        with skip_init():
            heads = nn.ModuleList(create_heads(model.num_experts, model.num_features, model.num_classes, **kind))
        heads.load_state_dict(tensors)
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path}: holds no classifiers of these experts ({' '.join(str(error).split())})") from error
    model.heads = heads.to(context.runtime.device)
    return replace(metadata, architecture={**architecture, **kind}, threshold_for="", classifier="")


def _kind(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the arguments of `longtail.create_model` that says what heads are."""
    return {name: architecture[name] for name in ("head", "scale") if name in architecture}


def _new_heads(
    context: RunContext, model: MultiExpert, metadata: ModelMetadata, val_loader: Loader | None, checkpoint: Checkpoint
) -> NewHeads:
    method = context.config.classifier.method
    if method == "retrain":
        return _retrained(context, model, metadata, checkpoint)
    if method == "scale":
        return _scaled(context, model, checkpoint)
    if method == "tau":
        return _tau_normalised(context, model, val_loader)
    return _nearest_mean(context, model)


def _retrained(context: RunContext, model: MultiExpert, metadata: ModelMetadata, checkpoint: Checkpoint) -> NewHeads:
    """Classifier re-training (cRT): heads of the same kind, drawn anew."""
    kind = _kind(metadata.architecture)
    with context.seeded_init():
        heads = create_heads(model.num_experts, model.num_features, model.num_classes, **kind)
        for head in heads:
            initialise_like(head, model.trunk)
    return NewHeads(heads, {"epochs": _trained(context, model, heads, checkpoint)})


def _scaled(context: RunContext, model: MultiExpert, checkpoint: Checkpoint) -> NewHeads:
    """Learnable weight scaling (LWS): a factor for each class."""
    heads = [ScaledClassifier(head) for head in model.heads]  # type: ignore[arg-type]
    records = _trained(context, model, heads, checkpoint)
    return NewHeads([head.fuse_batch_norms() for head in heads], {"epochs": records})


def _trained(
    context: RunContext, model: MultiExpert, heads: Sequence[nn.Module], checkpoint: Checkpoint
) -> list[dict[str, Any]]:
    task = TrainHeads(heads).to(context.runtime.device)
    optimizer, rate = optim.classifier_optimizer(context.config, task), optim.classifier_learning_rate(context.config)
    return train_on_frozen(context, model, task, "classifier", optimizer, rate, checkpoint)


def _tau_normalised(context: RunContext, model: MultiExpert, val_loader: Loader | None) -> NewHeads:
    """The given tau, or the smallest of those with the best balanced accuracy of the ensemble on validation images."""
    tau, info = context.config.classifier.tau, {}
    if tau is None:
        assert val_loader is not None
        seen = features(model, val_loader, context.runtime.group)
        by_tau = {
            tau: _balanced([tau_normalised(head, tau).cpu() for head in model.heads], seen, model.average)
            for tau in TAUS
        }
        tau = max(by_tau, key=lambda tau: by_tau[tau])
        context.say(f"tau {tau:g} was chosen on the validation images: {by_tau[tau]:.1%} balanced accuracy there")
        info = {"balanced_val_accuracy": {f"{tau:g}": value for tau, value in by_tau.items()}}
    return NewHeads([tau_normalised(head, tau) for head in model.heads], {"tau": tau, **info})


def _balanced(heads: Sequence[nn.Module], seen: Features, average: Average) -> float:
    """Accuracy of the ensemble, every class counting once."""
    with torch.inference_mode():
        logits = (_logits(heads, block) for block in torch.split(seen.features, BLOCK))
        answers = [ensemble(block, average).argmax(dim=1) for block in logits]
    num_classes = heads[0].weight.shape[0]  # type: ignore[union-attr,index]
    return score(torch.cat(answers), seen.labels, [0] * num_classes).balanced


def _logits(heads: Sequence[nn.Module], block: Tensor) -> Tensor:
    """(B, E, D) -> (B, E, C)."""
    return torch.stack([head(own) for head, own in zip(heads, block.unbind(dim=1), strict=True)], dim=1)


def _nearest_mean(context: RunContext, model: MultiExpert) -> NewHeads:
    """The class whose mean is nearest, from one pass over all training images as they are."""
    config, dataset = context.config, context.dataset
    loader = data_build.eval_loader(config, dataset, dataset.train, context.runtime)
    seen = features(model, loader, context.runtime.group)
    distance, scale = config.classifier.distance, config.model.scale
    heads = nearest_mean_heads(seen.features, seen.labels, model.num_classes, distance, scale)
    return NewHeads(heads, {"distance": distance})
