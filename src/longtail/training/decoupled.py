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
from longtail.models.initialisation import Uninitialised
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import Workplace
from longtail.runs.model_file import ModelCard
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


class Found(NamedTuple):
    """New heads, one for each expert."""

    heads: Sequence[nn.Module]
    told: dict[str, Any]
    """What is to be told of them, JSON-ready"""


def train_classifier(place: Workplace, model: MultiExpert, card: ModelCard, val_loader: Loader | None) -> ModelCard:
    """Gives a trained model the classifiers that the settings ask for; the run then holds it. Trunk and branches stay.

    It always starts from the experts' own heads, which the run keeps beside the model; method none gives them back. A
    router goes, because it was trained on the answers of other heads.

    Args:
        place: where to.
        model: on the device.
        card: of the model.
        val_loader: images to choose tau on, where the settings want that.

    Raises:
        InputError: the experts' own heads are not there any more; or a class has no images.
    """
    start, run, method = time.perf_counter(), place.run, place.config.classifier.method
    card = _with_own_heads(place, model, card)
    model.eval()
    model.router = None
    checkpoint = place.checkpoint("classifier", refuses=False)
    if method != "none":
        heads, told = _found(place, model, card, val_loader, checkpoint)
        model.heads = nn.ModuleList(heads).to(place.runtime.device).eval()
        architecture = {**card.architecture, **model_build.classifier_options(place.config)}
        card = replace(card, architecture=architecture, classifier=method)
        run.write_json("classifier.json", {"method": method, "seconds": time.perf_counter() - start, **told})
    for name in ("results.json", "router.json", "prior.json", "label_shift.json", "label_shift.md"):
        run.remove(name)  # what was said of the model before
    run.save_model(model, card)  # last: its description is what says that this stage is done
    checkpoint.remove()
    if method == "none":
        place.runtime.group.wait()  # until all have read them
        run.remove("classifier.json")
        run.remove(run.heads_path.name)
    return card


def _with_own_heads(place: Workplace, model: MultiExpert, card: ModelCard) -> ModelCard:
    """Gives a model back the experts' own heads, of which the run keeps a copy; returns its description, unrouted."""
    path, architecture = place.run.heads_path, {k: v for k, v in card.architecture.items() if k != "router"}
    if not card.classifier:
        kind = _kind(architecture)
        if place.run.writes:
            write_tensors(path, model.heads.state_dict(), kind)
        return replace(card, architecture=architecture, threshold_for="")
    if not path.is_file():
        raise InputError(f"{path} is not there: it held the experts' own classifiers, from which others are made")
    tensors, kind = read_tensors(path)
    try:
        with Uninitialised():
            heads = nn.ModuleList(create_heads(model.num_experts, model.num_features, model.num_classes, **kind))
        heads.load_state_dict(tensors)
    except (TypeError, RuntimeError) as error:
        raise InputError(f"{path}: holds no classifiers of these experts ({' '.join(str(error).split())})") from error
    model.heads = heads.to(place.runtime.device)
    return replace(card, architecture={**architecture, **kind}, threshold_for="", classifier="")


def _kind(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The part of the arguments of `longtail.create_model` that says what heads are."""
    return {name: architecture[name] for name in ("head", "scale") if name in architecture}


def _found(
    place: Workplace, model: MultiExpert, card: ModelCard, val_loader: Loader | None, checkpoint: Checkpoint
) -> Found:
    method = place.config.classifier.method
    if method == "retrain":
        return _retrained(place, model, card, checkpoint)
    if method == "scale":
        return _scaled(place, model, checkpoint)
    if method == "tau":
        return _tau_normalised(place, model, val_loader)
    return _nearest_mean(place, model)


def _retrained(place: Workplace, model: MultiExpert, card: ModelCard, checkpoint: Checkpoint) -> Found:
    """Classifier re-training (cRT): heads of the same kind, drawn anew."""
    kind = _kind(card.architecture)
    with place.drawing():
        heads = create_heads(model.num_experts, model.num_features, model.num_classes, **kind)
        for head in heads:
            initialise_like(head, model.trunk)
    return Found(heads, {"epochs": _trained(place, model, heads, checkpoint)})


def _scaled(place: Workplace, model: MultiExpert, checkpoint: Checkpoint) -> Found:
    """Learnable weight scaling (LWS): a factor for each class."""
    heads = [ScaledClassifier(head) for head in model.heads]  # type: ignore[arg-type]
    records = _trained(place, model, heads, checkpoint)
    return Found([head.folded() for head in heads], {"epochs": records})


def _trained(
    place: Workplace, model: MultiExpert, heads: Sequence[nn.Module], checkpoint: Checkpoint
) -> list[dict[str, Any]]:
    task = TrainHeads(heads).to(place.runtime.device)
    optimizer, rate = optim.classifier_optimizer(place.config, task), optim.classifier_learning_rate(place.config)
    return train_on_frozen(place, model, task, "classifier", optimizer, rate, checkpoint)


def _tau_normalised(place: Workplace, model: MultiExpert, val_loader: Loader | None) -> Found:
    """The given tau, or the smallest of those with the best balanced accuracy of the ensemble on validation images."""
    tau, told = place.config.classifier.tau, {}
    if tau is None:
        assert val_loader is not None
        seen = features(model, val_loader, place.runtime.group)
        by_tau = {
            tau: _balanced([tau_normalised(head, tau).cpu() for head in model.heads], seen, model.average)
            for tau in TAUS
        }
        tau = max(by_tau, key=lambda tau: by_tau[tau])
        place.say(f"tau {tau:g} was chosen on the validation images: {by_tau[tau]:.1%} balanced accuracy there")
        told = {"balanced_val_accuracy": {f"{tau:g}": value for tau, value in by_tau.items()}}
    return Found([tau_normalised(head, tau) for head in model.heads], {"tau": tau, **told})


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


def _nearest_mean(place: Workplace, model: MultiExpert) -> Found:
    """The class whose mean is nearest, from one pass over all training images as they are."""
    config, dataset = place.config, place.dataset
    loader = data_build.eval_loader(config, dataset, dataset.train, place.runtime)
    seen = features(model, loader, place.runtime.group)
    distance, scale = config.classifier.distance, config.model.scale
    heads = nearest_mean_heads(seen.features, seen.labels, model.num_classes, distance, scale)
    return Found(heads, {"distance": distance})
