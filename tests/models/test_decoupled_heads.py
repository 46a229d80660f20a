"""Heads for decoupled training: tau-normalisation, learnable weight scaling, nearest class means."""

import math
from itertools import combinations
from typing import get_args

import numpy as np
import pytest
import torch
from helpers import golden
from torch import nn

from longtail.models.decoupled_heads import (
    ScaledClassifier,
    class_means,
    nearest_mean_heads,
    tau_normalised,
)
from longtail.models.heads import CosineClassifier
from longtail.models.multi_expert import create_model
from longtail.utils.choices import Distance
from longtail.utils.errors import InputError

TAUS = ["0", "0.3146", "0.5", "0.6968", "0.7", "1"]
NUM, EXPERTS, CLASSES, DIM = 40, 3, 4, 6


@pytest.fixture
def features() -> torch.Tensor:
    """Features (N, E, D) with which all three distances lead to different predictions."""
    values = np.random.default_rng(1).standard_normal((NUM, EXPERTS, DIM)) + 0.5
    return torch.from_numpy(values * np.random.default_rng(2).uniform(0.2, 5, (NUM, 1, 1))).float()


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.tensor([0] * 20 + [1] * 12 + [2] * 7 + [3])


def linear(seed: int = 3) -> nn.Linear:
    values = torch.from_numpy(np.random.default_rng(seed).standard_normal((CLASSES, DIM + 1))).float()
    head = nn.Linear(DIM, CLASSES)
    head.weight.data, head.bias.data = values[:, 1:], values[:, 0]
    return head


# ---- tau-normalisation ----


@pytest.mark.parametrize("tau", TAUS)
def test_tau_normalisation_equals_the_original(tau):
    arrays = golden.arrays("tau_norm/tau_norm.npz")
    weight = torch.from_numpy(arrays["weight"])
    head = nn.Linear(weight.shape[1], weight.shape[0])
    head.weight.data = weight.clone()
    normalised = tau_normalised(head, float(tau))
    np.testing.assert_allclose(normalised.weight.detach(), arrays[f"tau_{tau}"], rtol=3e-7)
    assert not normalised.bias.any()
    assert head.bias.any()
    assert torch.equal(head.weight, weight)


def test_tau_normalisation_of_zero_weights():
    head = linear()
    head.weight.data[1] = 0
    assert not tau_normalised(head, 0.7).weight[1].any()
    assert tau_normalised(head, 1).weight.norm(dim=1).tolist() == pytest.approx([1, 0, 1, 1])


def test_tau_normalisation_needs_a_linear_head():
    """A cosine head ignores the lengths of its class weights."""
    head = CosineClassifier(DIM, CLASSES)
    with pytest.raises(InputError, match=r"linear head.*cosine head"):
        tau_normalised(head, 0.5)
    features = torch.randn(5, DIM)
    before = head(features)
    head.weight.data *= torch.tensor([0.1, 1, 3, 10])[:, None]
    torch.testing.assert_close(head(features), before)


# ---- learnable weight scaling ----


@pytest.mark.parametrize("bias", [True, False])
def test_scaled_linear_head_becomes_a_linear_head(bias, features):
    head = linear() if bias else nn.Linear(DIM, CLASSES, bias=False)
    scaled = ScaledClassifier(head)
    assert torch.equal(scaled(features[:, 0]), head(features[:, 0]))
    scaled.scales.data = torch.tensor([0.5, 1.0, -2.0, 3.0])
    merged = scaled.to_linear()
    torch.testing.assert_close(merged(features[:, 0]), scaled(features[:, 0]))
    slow = head(features[:, 0])[:, 2] * -2
    torch.testing.assert_close(merged(features[:, 0])[:, 2], slow)
    assert set(merged.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_only_scales_are_trained(kind, features, labels):
    head = linear() if kind == "linear" else CosineClassifier(DIM, CLASSES)
    scaled = ScaledClassifier(head)
    before = head.weight.detach().clone()
    optimizer = torch.optim.SGD(scaled.parameters(), 0.1, weight_decay=5e-4)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(scaled(features[:, 0]), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert torch.equal(head.weight, before)
    assert [name for name, parameter in scaled.named_parameters() if parameter.requires_grad] == ["scales"]


def test_scaled_cosine_head_cannot_become_a_linear_head():
    with pytest.raises(InputError, match=r"linear head.*cosine head"):
        ScaledClassifier(CosineClassifier(DIM, CLASSES)).to_linear()


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_model_with_scaled_heads(kind):
    model = create_model("resnet20", CLASSES, 2, head=kind).eval()
    images = torch.randn(2, 3, 8, 8)
    before = model(images).logits
    for number, head in enumerate(model.heads):
        model.heads[number] = ScaledClassifier(head)
        model.heads[number].scales.data[1] = 3 + number
    factors = torch.tensor([[1.0, 3, 1, 1], [1, 4, 1, 1]])
    torch.testing.assert_close(model(images).logits, before * factors)
    assert (model.num_classes, model.num_features) == (CLASSES, 48)


# ---- nearest class means ----


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(sum(vector**2))


def slow_scores(train: np.ndarray, labels: np.ndarray, test: np.ndarray, distance: str) -> list[list[float]]:
    """Minus the squared distance of each image to each class, or the cosine."""
    train, test = train.astype(float), test.astype(float)
    if distance == "euclidean":
        means = [sum(train[labels == k]) / sum(labels == k) for k in range(CLASSES)]
        return [[-sum((image - mean) ** 2) for mean in means] for image in test]
    centre = sum(train) / len(train) if distance == "centred cosine" else np.zeros(DIM)
    means = [sum(unit(image - centre) for image in train[labels == k]) for k in range(CLASSES)]
    return [[float(unit(image - centre) @ unit(mean)) for mean in means] for image in test]


@pytest.mark.parametrize("distance", get_args(Distance))
def test_nearest_class_means(distance, features, labels):
    test = torch.from_numpy(np.random.default_rng(4).standard_normal((50, EXPERTS, DIM)) + 0.5).float()
    heads = nearest_mean_heads(features, labels, CLASSES, distance, scale=30)
    assert len(heads) == EXPERTS
    for e, head in enumerate(heads):
        slow = np.array(slow_scores(features[:, e].numpy(), labels.numpy(), test[:, e].numpy(), distance))
        scores = head(test[:, e]).detach().double().numpy()
        assert (scores.argmax(1) == slow.argmax(1)).all()
        if distance == "cosine":
            np.testing.assert_allclose(scores, 30 * slow, atol=3e-5)
        elif distance == "euclidean":  # the same except for a constant
            np.testing.assert_allclose(
                scores - scores.mean(1, keepdims=True), slow - slow.mean(1, keepdims=True), atol=1e-3
            )
        else:
            centre = features[:, e].double().mean(0).numpy()
            lengths = [math.sqrt(sum((image - centre) ** 2)) for image in test[:, e].double().numpy()]
            np.testing.assert_allclose(scores, 30 * slow * np.array(lengths)[:, None], atol=3e-4)


def test_distances_lead_to_different_predictions(features, labels):
    predictions = [
        nearest_mean_heads(features, labels, CLASSES, distance)[0](features[:, 0]).argmax(1)
        for distance in get_args(Distance)
    ]
    for first, second in combinations(predictions, 2):
        assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("kind", "distance"), [("cosine", "cosine"), ("linear", "euclidean"), ("linear", "centred cosine")]
)
def test_model_with_nearest_mean_heads_keeps_its_names_and_shapes(kind, distance):
    model = create_model("resnet20", CLASSES, 2, head=kind).eval()
    names = {name: value.shape for name, value in model.state_dict().items()}
    images, labels = torch.randn(12, 3, 8, 8), torch.arange(12) % CLASSES
    features = model(images).features
    before = torch.get_rng_state()
    model.heads = nn.ModuleList(nearest_mean_heads(features, labels, CLASSES, distance))
    assert torch.equal(torch.get_rng_state(), before)
    assert {name: value.shape for name, value in model.state_dict().items()} == names
    assert (model(images).ensemble.argmax(1) == labels).float().mean() > 1 / CLASSES


def test_class_means_are_exact(labels):
    """Even if features are much larger than their differences."""
    features = 1e4 + torch.from_numpy(np.random.default_rng(5).standard_normal((NUM, DIM))).float()
    slow = [features[labels == k].double().mean(0).float() for k in range(CLASSES)]
    assert torch.equal(class_means(features, labels, CLASSES), torch.stack(slow))


def test_classes_without_images_and_unknown_distances(features, labels):
    with pytest.raises(InputError, match=r"1 of 5 classes .* 4"):
        nearest_mean_heads(features, labels, 5)
    with pytest.raises(InputError, match=r"distance is 'euclid'.* did you mean 'euclidean'"):
        nearest_mean_heads(features, labels, CLASSES, "euclid")
