"""Adjustment to known and unknown class priors, compared with slow versions and with exact solutions."""

import math

import numpy as np
import pytest
import torch

from longtail.evaluation.label_shift.adjustment import (
    AggregationSettings,
    adjust_to_prior,
    aggregation_weights,
    agreement,
    learned_log_prior,
)
from longtail.losses import LogitAdjustedLoss, effective_number_weights, inverse_log_prior, log_prior
from longtail.runtime.seed import generator
from longtail.utils.ensembles import weighted_ensemble

COUNTS = [90, 500, 12, 40, 5]
TEST_COUNTS = [10, 20, 5, 40, 60]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).standard_normal((30, 3, 5)) * 2)


# ---- a known prior ----


def fit(criterion, posterior: torch.Tensor, experts: int) -> torch.Tensor:
    """Logits (1, E, C) that minimise the expected loss of an image with these class probabilities (C,)."""
    logits = torch.zeros(1, experts, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=0
    )

    def closure():
        optimizer.zero_grad()
        loss = sum(p * criterion(logits, torch.tensor([k])) for k, p in enumerate(posterior))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach()


SADE = {"prior_exponents": [0, 1, 1], "inverse_exponents": [0, 0, -2]}
TRAINED = {
    "cross-entropy": {},
    "balanced softmax": {"prior_exponents": [1.0]},
    "BalPoE": {"prior_exponents": [0, 1, 2]},
    "SADE": SADE,
    "re-weighted": {"class_weights": effective_number_weights(COUNTS, 0.99)},
    "re-weighted SADE": {**SADE, "class_weights": effective_number_weights(COUNTS, 0.99)},
}


@pytest.mark.parametrize("name", TRAINED)
def test_adjusted_probabilities_follow_bayes_rule(name):
    """Experts that minimise the expected loss for one prior are adjusted to the exact probabilities of another."""
    likelihoods = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
    training, test = (likelihoods * torch.tensor(counts) for counts in (COUNTS, TEST_COUNTS))
    settings = dict(TRAINED[name])
    weights = settings.pop("class_weights", torch.ones(5))
    adjusted = LogitAdjustedLoss(COUNTS, **{"prior_exponents": [0.0], **settings}).double()

    def criterion(logits, label):  # the weight of the image's class times its loss, not a weighted mean
        return weights[label].double() * adjusted(logits, label, 1)

    experts = fit(criterion, training / training.sum(), 3)
    ours = adjust_to_prior(experts, learned_log_prior(COUNTS, **TRAINED[name]), log_prior(TEST_COUNTS))
    expected = (test / test.sum()).expand(3, -1)
    torch.testing.assert_close(ours.softmax(2)[0], expected, rtol=1e-4, atol=0)


def test_adjustment_to_the_learned_prior_changes_nothing(logits):
    ours = adjust_to_prior(logits, learned_log_prior(COUNTS), log_prior(COUNTS))
    torch.testing.assert_close(ours, logits)
    balanced = learned_log_prior(COUNTS, [1.0])
    assert torch.equal(balanced, torch.zeros(1, 5))
    assert torch.equal(adjust_to_prior(logits, balanced, torch.zeros(5)), logits)


def test_learned_log_prior_equals_the_formula():
    weights = torch.tensor([1.0, 2, 3, 4, 5])
    ours = learned_log_prior(COUNTS, [0, 1, 2], [0, 0, -2], weights)
    assert ours.shape == (3, 5)
    prior, inverse = log_prior(COUNTS).tolist(), inverse_log_prior(COUNTS).tolist()
    for e, (tau, opposite) in enumerate([(0, 0), (1, 0), (2, -2)]):
        slow = [prior[k] + math.log(k + 1) - tau * prior[k] - opposite * inverse[k] for k in range(5)]
        assert ours[e].tolist() == pytest.approx(slow, abs=1e-5)


# ---- ensembles ----


def test_weighted_ensembles(logits):
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    of_logits, of_probabilities = (weighted_ensemble(logits, weights, of) for of in ("logits", "probabilities"))
    slow = sum(float(weight) * logits[:, e] for e, weight in enumerate(weights))
    torch.testing.assert_close(of_logits, slow)
    slow = sum(float(weight) * logits[:, e].softmax(1) for e, weight in enumerate(weights))
    torch.testing.assert_close(of_probabilities.exp(), slow)
    for of in ("logits", "probabilities"):
        alone = weighted_ensemble(logits, torch.tensor([0.0, 1, 0], dtype=torch.float64), of)
        torch.testing.assert_close(alone.softmax(1), logits[:, 1].softmax(1))
    equal = torch.full((3,), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(weighted_ensemble(logits, equal), logits.mean(1))


# ---- an unknown prior ----


def slow_softmax(values) -> np.ndarray:
    powers = np.exp(np.asarray(values) - max(values))
    return powers / powers.sum()


def slow_agreement(first: np.ndarray, second: np.ndarray, weights: np.ndarray) -> float:
    cosines = []
    for one, other in zip(first, second, strict=True):
        p, q = (slow_softmax(sum(w * row for w, row in zip(weights, view, strict=True))) for view in (one, other))
        cosines.append(sum(p * q) / math.sqrt(sum(p * p) * sum(q * q)))
    return sum(cosines) / len(cosines)


def slow_aggregation(first: np.ndarray, second: np.ndarray, batches, min_weight: float = 0.045) -> np.ndarray:
    """With numerical gradients and Nesterov momentum: v = 0.9 v + g, step by g + 0.9 v."""
    scores, velocity, h = np.full(3, 1 / 3), np.zeros(3), 1e-5
    for epoch in batches:
        for batch in epoch:
            gradient = 5e-4 * scores
            for e in range(3):
                up, down = (
                    slow_agreement(first[batch], second[batch], slow_softmax(scores + sign * h * np.eye(3)[e]))
                    for sign in (1, -1)
                )
                gradient[e] -= (up - down) / (2 * h)
            velocity = 0.9 * velocity + gradient
            scores = scores - 0.1 * (gradient + 0.9 * velocity)
        if slow_softmax(scores).min() < min_weight:
            break
    return slow_softmax(scores)


def test_agreement(logits):
    second = logits + torch.from_numpy(np.random.default_rng(2).standard_normal(logits.shape))
    weights = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    slow = slow_agreement(logits.numpy(), second.numpy(), weights.numpy())
    assert agreement(logits, second, weights).item() == pytest.approx(slow, rel=1e-12)
    assert agreement(logits, logits, weights).item() == pytest.approx(1)


@pytest.mark.parametrize("batch_size", [30, 8])
def test_aggregation_weights(batch_size, logits):
    noise = torch.tensor([0.2, 3.0, 1.0], dtype=torch.float64)[:, None]
    second = logits + noise * torch.from_numpy(np.random.default_rng(2).standard_normal(logits.shape))
    batches = [torch.randperm(30, generator=generator(4, epoch)).split(batch_size) for epoch in range(1, 6)]
    slow = slow_aggregation(logits.numpy(), second.numpy(), [[b.numpy() for b in epoch] for epoch in batches])
    ours = aggregation_weights(logits, second, settings=AggregationSettings(batch_size=batch_size, seed=4))
    assert ours.tolist() == pytest.approx(slow.tolist(), abs=1e-7)
    assert ours[0] > ours[2] > ours[1]
    assert ours.sum().item() == pytest.approx(1)


def example_views(num: int = 512, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """The second of three experts predicts the true class of both views. The others predict random classes."""
    draw = generator(7)
    labels = torch.randint(classes, (num,), generator=draw)
    views = []
    for _ in range(2):
        predicted = torch.randint(classes, (num, 3), generator=draw)
        predicted[:, 1] = labels
        views.append(8 * torch.nn.functional.one_hot(predicted, classes).float())
    return views[0], views[1]


def test_a_stable_expert_gets_most_of_the_weight():
    weights = aggregation_weights(*example_views())
    assert weights[1] > 0.8
    before, after = (agreement(*example_views(), w) for w in (torch.full((3,), 1 / 3), weights))
    assert after > before + 0.1


def test_equal_experts_keep_equal_weights():
    first, second = (view[:, 1:2].expand(-1, 3, -1) for view in example_views())
    assert aggregation_weights(first, second + 1).tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_training_stops_at_the_minimum_weight():
    def weights(epochs, **changes):
        settings = AggregationSettings(epochs, learning_rate=1.0, batch_size=512, **changes)
        return aggregation_weights(*example_views(), settings=settings)

    stopped = weights(50)
    assert stopped.min() < 0.045
    by_epoch = [weights(epochs) for epochs in range(1, 51)]
    first = next(number for number, w in enumerate(by_epoch) if w.min() < 0.045)
    assert 0 < first < 49
    assert torch.equal(stopped, by_epoch[first])
    assert not torch.equal(stopped, weights(50, min_weight=0))


def test_weights_depend_only_on_the_seed_and_have_no_gradients():
    def weights(seed):
        return aggregation_weights(*example_views(200), settings=AggregationSettings(seed=seed, batch_size=16))

    expected = weights(1)
    with torch.no_grad():
        torch.manual_seed(0)
        assert torch.equal(weights(1), expected)
    assert not expected.requires_grad
    assert not torch.equal(weights(2), expected)


def test_views_may_be_inference_tensors():
    first, second = example_views(64)
    expected = aggregation_weights(first, second)
    with torch.inference_mode():
        views = first * 1, second * 1
        assert torch.equal(aggregation_weights(*views), expected)
    assert torch.equal(aggregation_weights(*views), expected)
