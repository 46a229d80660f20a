"""Focal loss and logit adjustment, and methods that use them, against slow versions of the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from helpers import golden

import longtail
from longtail.config.recipes import load_recipe, resolve
from longtail.losses import (
    CrossEntropyLoss,
    FocalLoss,
    LogitAdjustedLoss,
    adjust_logits,
    cross_entropy,
    effective_number_weights,
    focal,
    focused,
    inverse_log_prior,
    log_prior,
)
from longtail.losses.build import build_criterion

COUNTS = [90, 500, 12, 40, 5]
WEIGHT = [0.2, 0.5, 1.0, 1.5, 1.8]
METHODS = {
    "focal": lambda **options: FocalLoss(COUNTS, **options),
    "balanced softmax": lambda **options: LogitAdjustedLoss(COUNTS, **options),
    "tau 1.5": lambda **options: LogitAdjustedLoss(COUNTS, prior_exponents=[1.5], **options),
    "BalPoE": lambda **options: LogitAdjustedLoss(COUNTS, prior_exponents=[0, 1, 2], **options),
    "SADE": lambda **options: LogitAdjustedLoss(
        COUNTS, prior_exponents=[0, 1, 1], inverse_exponents=[0, 0, -2], **options
    ),
}


# ---- slow versions: the loss of one image and one expert ----


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def slow_focal(logits: list[float], target: int, gamma: float) -> float:
    p = softmax(logits)[target]
    return -((1 - p) ** gamma) * math.log(p)


def slow_balanced_softmax(logits: list[float], target: int, tau: float = 1.0) -> float:
    """Ren et al., equation 3: the counts multiply the exponentials; Menon et al.: the counts to the power tau."""
    terms = [n**tau * math.exp(value) for n, value in zip(COUNTS, logits, strict=True)]
    return -math.log(terms[target] / sum(terms))


def slow_inverse_softmax(logits: list[float], target: int, strength: float) -> float:
    """SADE: logits plus log pi minus strength times the log of pi with inverted ranks."""
    shares = [n / sum(COUNTS) for n in COUNTS]
    ranked = sorted(shares)
    inverted = [sorted(shares, reverse=True)[ranked.index(share)] for share in shares]
    adjusted = [z + math.log(p) - strength * math.log(q) for z, p, q in zip(logits, shares, inverted, strict=True)]
    return -math.log(softmax(adjusted)[target])


def slow_balpoe(logits: list[float], target: int, lam: float) -> float:
    """BalPoE: the expert for the prior to the power lambda has logits plus (1 - lambda) log pi."""
    adjusted = [z + (1 - lam) * math.log(n / sum(COUNTS)) for z, n in zip(logits, COUNTS, strict=True)]
    return -math.log(softmax(adjusted)[target])


SLOW = {
    "focal": lambda row, target, expert: slow_focal(row, target, 2.0),
    "balanced softmax": lambda row, target, expert: slow_balanced_softmax(row, target),
    "tau 1.5": lambda row, target, expert: slow_balanced_softmax(row, target, 1.5),
    "BalPoE": lambda row, target, expert: slow_balpoe(row, target, [1, 0, -1][expert]),
    "SADE": lambda row, target, expert: [
        -math.log(softmax(row)[target]),
        slow_balanced_softmax(row, target),
        slow_inverse_softmax(row, target, 2.0),
    ][expert],
}


def slow_mean(name: str, logits: np.ndarray, labels: np.ndarray, soft: np.ndarray | None, weight: list[float]) -> float:
    """Sum over experts; mean over images, which is weighted if the targets are hard."""
    total = 0.0
    for b, label in enumerate(labels):
        shares = [float(k == label) for k in range(5)] if soft is None else soft[b]
        for e in range(logits.shape[1]):
            total += weight[label] * sum(shares[k] * SLOW[name](logits[b, e].tolist(), k, e) for k in range(5))
    return total / (sum(weight[label] for label in labels) if soft is None else len(labels))


@pytest.fixture(params=[0, 1])
def batch(request):
    """Random logits (B, E, C) in float64, labels (B,) and soft targets (B, C)."""
    generator = np.random.default_rng(request.param)
    return 3 * generator.standard_normal((7, 3, 5)), generator.integers(0, 5, 7), generator.dirichlet([1.0] * 5, 7)


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("epoch", [5, 6])
@pytest.mark.parametrize("name", METHODS)
def test_methods_without_and_with_class_weights(name, epoch, soft, batch):
    logits, labels, targets = batch
    weight = effective_number_weights(COUNTS).tolist() if epoch > 5 else [1.0] * 5
    slow = slow_mean(name, logits, labels, targets if soft else None, weight)
    criterion = METHODS[name](reweight_after=5).double()
    inputs = [torch.from_numpy(array) for array in (logits, labels, targets)]
    fast = criterion(*inputs[:2], epoch, inputs[2] if soft else None)
    assert fast.item() == pytest.approx(slow, rel=1e-6)  # constants are float32


@pytest.mark.parametrize("name", METHODS)
def test_class_weights_from_the_first_epoch(name, batch):
    """Class-balanced loss (Cui et al.): any loss with weights by the effective number of images."""
    logits, labels, _ = (torch.from_numpy(array) for array in batch)
    balanced, plain = METHODS[name](reweight_after=0).double(), METHODS[name]()
    assert balanced(logits, labels, 1).item() != pytest.approx(plain(logits, labels, 1).item(), rel=1e-3)
    slow = slow_mean(name, batch[0], batch[1], None, effective_number_weights(COUNTS).tolist())
    assert balanced(logits, labels, 1).item() == pytest.approx(slow, rel=1e-5)


# ---- focal loss ----


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_focal(gamma, weighted, soft, batch):
    logits, labels, targets = batch
    weight = WEIGHT if weighted else [1.0] * 5
    total = 0.0
    for b, label in enumerate(labels):
        shares = targets[b] if soft else np.eye(5)[label]
        for row in logits[b].tolist():
            total += weight[label] * sum(shares[k] * slow_focal(row, k, gamma) for k in range(5))
    slow = total / (len(labels) if soft else sum(weight[label] for label in labels))
    inputs = [torch.from_numpy(array) for array in (logits, labels, targets)]
    class_weights = torch.tensor(WEIGHT, dtype=torch.float64) if weighted else None
    fast = focal(*inputs[:2], gamma, class_weights, inputs[2] if soft else None)
    assert fast.item() == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("weight", [None, torch.tensor(WEIGHT, dtype=torch.float64)])
def test_focal_with_gamma_0_is_cross_entropy(weight, batch):
    logits, labels, _ = (torch.from_numpy(array) for array in batch)
    assert torch.equal(focal(logits, labels, 0.0, weight), cross_entropy(logits, labels, weight))


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_focal_of_certain_experts_is_finite(gamma):
    """The experts are certain of the label, where (1 - p)^gamma can have an infinite slope, and of another class."""
    logits = torch.tensor([[[500.0, 0.0, -500.0], [-500.0, 0.0, 500.0]]], requires_grad=True)
    loss = focal(logits, torch.tensor([0]), gamma)
    loss.backward()
    assert loss.item() == pytest.approx(1000)
    assert logits.grad.isfinite().all()


def focal_cases() -> list[str]:
    cases = golden.table("losses/ride_losses.json")["cases"]
    return [name for name in cases if name.startswith("focal")]


def test_every_case_of_the_original_focal_loss_is_compared():
    assert len(focal_cases()) == 14


@pytest.mark.parametrize("name", focal_cases())
def test_original_focal_loss(name):
    """The original multiplies the cross-entropy by the class weight before the exponential, unlike the paper.

    Without class weights they are equal.
    """
    arrays = golden.arrays("losses/ride_losses.npz")
    case = golden.table("losses/ride_losses.json")["cases"][name]
    logits = arrays["small_logits"] if case.get("logits") == "small_logits" else arrays["expert_logits"][0]
    inputs, labels = torch.from_numpy(logits).requires_grad_(), torch.from_numpy(arrays["targets"])
    gamma, weighted = case["args"]["gamma"], case["args"]["weight"] is not None
    if weighted:
        weight = torch.from_numpy(arrays["focal/weight"]).float()
        loss = -focused(-torch.nn.functional.cross_entropy(inputs, labels, weight, reduction="none"), gamma).mean()
    else:
        loss = focal(inputs[:, None], labels, gamma)
    loss.backward()
    gradient = arrays[f"{name}/grad"]
    assert loss.item() == pytest.approx(arrays[f"{name}/loss_value"].item(), rel=1e-5)
    np.testing.assert_allclose(inputs.grad, gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


# ---- logit adjustment ----


def test_priors():
    shares = [n / sum(COUNTS) for n in COUNTS]
    assert log_prior(COUNTS).tolist() == pytest.approx([math.log(share) for share in shares], rel=1e-6)
    assert log_prior(COUNTS).exp().sum().item() == pytest.approx(1)
    inverted = [12, 5, 90, 40, 500]
    assert inverse_log_prior(COUNTS).tolist() == log_prior(inverted).tolist()


def test_equally_common_classes_keep_their_order_in_the_inverse_prior():
    assert inverse_log_prior([7, 7, 7, 7]).tolist() == log_prior([7, 7, 7, 7]).tolist()
    assert inverse_log_prior([9, 3, 3, 1]).tolist() == log_prior([1, 3, 3, 9]).tolist()


def test_one_exponent_or_one_per_expert(batch):
    logits = torch.from_numpy(batch[0])
    prior = log_prior(COUNTS)
    adjusted = adjust_logits(logits, prior, torch.tensor([0.0, 1.0, -0.5]))
    for expert, tau in enumerate([0.0, 1.0, -0.5]):
        torch.testing.assert_close(adjusted[:, expert], adjust_logits(logits[:, expert], prior, tau))
    assert torch.equal(adjust_logits(logits, prior), adjust_logits(logits, prior, torch.ones(3)))
    assert torch.equal(adjusted[:, 0], logits[:, 0])


def test_post_hoc_adjustment_undoes_the_prior():
    """Logits log p(k | x) of the long tail become log p(x | k), as for balanced classes."""
    likelihoods = np.random.default_rng(3).dirichlet([1.0] * 6, 5)  # p(x | k) of 6 images: (C, 6)
    joint = likelihoods * np.array(COUNTS)[:, None] / sum(COUNTS)
    posterior = torch.from_numpy((joint / joint.sum(0)).T)
    balanced = torch.from_numpy((likelihoods / likelihoods.sum(0)).T)
    adjusted = adjust_logits(posterior.log()[:, None], log_prior(COUNTS), -1.0)
    torch.testing.assert_close(adjusted.softmax(2)[:, 0], balanced, rtol=1e-6, atol=0)


def test_mean_of_balpoe_experts_fits_balanced_classes():
    """The mean of tau over the experts is 1, so the priors cancel."""
    balanced = torch.from_numpy(np.random.default_rng(4).dirichlet([1.0] * 5, 6))
    posterior = (balanced * torch.tensor(COUNTS)).log()  # the adjusted logits of each expert fit it
    taus = torch.tensor([0.0, 1.0, 2.0])
    experts = adjust_logits(posterior[:, None].expand(-1, 3, -1), log_prior(COUNTS), -taus)
    torch.testing.assert_close(experts.mean(1).softmax(1), balanced, rtol=1e-6, atol=0)


def test_minimising_balanced_softmax_finds_the_balanced_classifier():
    """Minimises the expected loss of one image, with the long-tailed posterior as soft target."""
    balanced = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.15], dtype=torch.float64)
    posterior = balanced * torch.tensor(COUNTS)
    logits = torch.zeros(1, 1, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-12)
    criterion = LogitAdjustedLoss(COUNTS).double()

    def closure():
        optimizer.zero_grad()
        loss = criterion(logits, torch.tensor([0]), 1, (posterior / posterior.sum())[None])
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(logits.detach().softmax(2)[0, 0], balanced, rtol=1e-3, atol=0)


def test_exponent_0_is_cross_entropy(batch):
    logits, labels, _ = (torch.from_numpy(array) for array in batch)
    plain = LogitAdjustedLoss(COUNTS, prior_exponents=[0.0])(logits, labels, 1)
    assert torch.equal(plain, CrossEntropyLoss(COUNTS)(logits, labels, 1))


def test_sum_with_the_prior_is_not_rounded_to_half_precision():
    """Under autocast logits are in half precision."""
    logits = torch.zeros(1, 3, 5, dtype=torch.bfloat16)
    assert torch.equal(adjust_logits(logits, log_prior(COUNTS))[0, 0], log_prior(COUNTS))


# ---- criteria and settings ----


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", METHODS)
def test_losses_on_the_gpu_equal_those_on_the_cpu(name, batch):
    logits, labels, soft = (torch.from_numpy(array).float() if array.ndim > 1 else torch.from_numpy(array)
                            for array in batch)  # fmt: skip
    criterion = METHODS[name](reweight_after=0)
    on_cpu = criterion(logits, labels, 1, soft)
    torch.testing.assert_close(criterion.cuda()(logits.cuda(), labels.cuda(), 1, soft.cuda()).cpu(), on_cpu)


@pytest.mark.parametrize("name", ["focal", "balanced-softmax", "sade", "balpoe", "cb"])
def test_recipes_have_the_losses_of_their_methods(name, batch):
    logits, labels, _ = (torch.from_numpy(array) for array in batch)
    config = load_recipe(f"cifar100-lt-{name}")
    criterion = build_criterion(config.loss, COUNTS, config.training.epochs, config.model.scale)
    if name == "cb":
        expected = cross_entropy(logits, labels, effective_number_weights(COUNTS).double()).item()
        criterion = criterion.double()
    else:
        method = {"balanced-softmax": "balanced softmax", "sade": "SADE", "balpoe": "BalPoE"}.get(name, name)
        expected = slow_mean(method, batch[0], batch[1], None, [1.0] * 5)
    for epoch in (1, config.training.epochs):
        assert criterion(logits, labels, epoch).item() == pytest.approx(expected, rel=1e-6)
    experts = 3 if name in ("sade", "balpoe") else 1
    assert (config.model.num_experts, config.model.width) == (experts, "narrow" if name == "sade" else "full")


def test_recipes_of_sade_and_balpoe_have_the_published_settings():
    """BalPoE's published learning rate and weight decay are for the mean over experts."""
    sade, balpoe = load_recipe("cifar100-lt-sade"), load_recipe("cifar100-lt-balpoe")
    for config, summands in ((sade, 1), (balpoe, 3)):
        training = config.training
        assert training.learning_rate * summands == pytest.approx(0.1)
        assert training.weight_decay / summands == pytest.approx(5e-4)
        assert (training.epochs, training.batch_size, training.decay) == (200, 128, 0.1)
        assert (training.momentum, training.nesterov, config.model.head) == (0.9, True, "cosine")
    assert (sade.augmentation.mixup, balpoe.augmentation.mixup) == (0.0, 0.4)


def test_sum_over_experts_equals_the_mean_with_another_learning_rate_and_weight_decay():
    """The recipe of BalPoE uses this."""
    settings = {"mean": (1 / 3, 0.1, 5e-4), "sum": (1.0, 0.1 / 3, 1.5e-3)}
    found = {}
    for name, (factor, rate, decay) in settings.items():
        weight = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
        optimizer = torch.optim.SGD([weight], rate, momentum=0.9, nesterov=True, weight_decay=decay)
        for _ in range(5):
            optimizer.zero_grad()
            (factor * (weight.exp().sum() + weight.square().sum())).backward()
            optimizer.step()
        found[name] = weight.detach()
    torch.testing.assert_close(found["sum"], found["mean"])


WRONG = [
    (["--loss.focal_gamma", "-1"], ["loss.focal_gamma", "-1", "at least 0"]),
    (["--loss.prior_exponents", "[0, 1]"], ["loss.prior_exponents", "[0", "1 number, or 3"]),
    (["--loss.prior_exponents", "[]"], ["loss.prior_exponents", "1 number, or 3"]),
    (["--loss.inverse_exponents", "[0, 0, -2, 1]"], ["loss.inverse_exponents", "1 number, or 3"]),
    (["--model.num_experts", "4"], ["loss.prior_exponents", "1 number, or 4"]),
    (["--loss.prior_exponents", "[.nan]"], ["loss.prior_exponents", "finite"]),
]


@pytest.mark.parametrize(("arguments", "named"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_wrong_settings_are_named_in_one_line(arguments, named):
    with pytest.raises(longtail.InputError) as caught:
        resolve("cifar100-lt-balpoe", {}, arguments)
    message = str(caught.value)
    assert "\n" not in message
    for word in named:
        assert word in message


def test_exponents_are_checked_for_logit_adjustment_only():
    config = resolve("cifar100-lt-balpoe", {}, ["--loss.name", "ride", "--model.num_experts", "4"])
    assert config.model.num_experts == 4
