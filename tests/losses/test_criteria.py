"""Losses against the original code, and against slow versions of the papers' formulas."""

import math

import numpy as np
import pytest
import torch
from helpers import golden

import longtail
from longtail.config.schema import LossConfig
from longtail.losses import (
    Criterion,
    CrossEntropyLoss,
    DistilledLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    RIDELoss,
    class_temperatures,
    cross_entropy,
    distillation,
    divergence,
    effective_number_weights,
    ldam,
    ldam_margins,
    register,
    subtract_margins,
)
from longtail.losses.base import REGISTRY
from longtail.losses.build import build_criterion
from longtail.utils.errors import InputError

REWEIGHT_AFTER = 160
COUNTS = [500, 90, 40, 12, 5]


def counts() -> list[int]:
    return golden.arrays("losses/ride_losses.npz")["cls_num_list"].tolist()


def assert_close(values, expected, tolerance=1e-5):
    np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


# ---- the original code ----


def ride_cases() -> list[str]:
    cases = golden.table("losses/ride_losses.json")["cases"]
    return [name for name in cases if name.split("/")[0] in ("ride", "ldam", "ce")]


def ride_loss(name: str, case: dict, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Computes the loss of one of the original's cases, from logits (B, E, C)."""
    arguments = case.get("args", {})
    factor = arguments.get("additional_diversity_factor")
    margins = {"max_margin": arguments.get("max_m", 0.5), "scale": arguments.get("s", 30.0)}
    match name.split("/"):
        case ["ride", "noextra"]:
            return cross_entropy(logits.mean(dim=1, keepdim=True), targets)
        case ["ride", "nocounts", _]:
            return cross_entropy(logits, targets) + factor * divergence(logits)
        case ["ride", "baseloss05", _]:
            late = case["epoch"] > REWEIGHT_AFTER
            weight = effective_number_weights(counts()) if late else None
            temperature = class_temperatures(counts(), arguments["reweight_factor"]) if late else 1.0
            individual = ldam(logits, targets, ldam_margins(counts()), weight=weight)
            return arguments["base_loss_factor"] * individual + factor * divergence(logits, temperature)
        case ["ride", *_]:
            criterion = RIDELoss(
                counts(),
                diversity_factor=factor,
                diversity_temperature=arguments.get("base_diversity_temperature", 1.0),
                temperature_spread=arguments.get("reweight_factor", 0.05),
                reweight_after=arguments["reweight_epoch"],
                collaborative=factor == 0,
                **margins,
            )
        case ["ldam", "nocounts"]:
            return cross_entropy(logits, targets)
        case ["ldam", *_]:
            after = arguments["reweight_epoch"]
            criterion = LDAMLoss(counts(), reweight_after=None if after == -1 else after, **margins)
        case ["ce", *_]:
            criterion = CrossEntropyLoss(counts(), reweight_after=0 if arguments["reweight_CE"] else None)
    return criterion(logits, targets, case.get("epoch", 1))


@pytest.mark.parametrize("name", ride_cases())
def test_values_and_gradients_of_ride(name):
    arrays = golden.arrays("losses/ride_losses.npz")
    case = golden.table("losses/ride_losses.json")["cases"][name]
    value, gradient = arrays[f"{name}/loss_value"], arrays[f"{name}/grad"]
    experts = len(gradient) if gradient.ndim == 3 else 1
    inputs = torch.from_numpy(arrays["expert_logits"][:experts]).requires_grad_()
    loss = ride_loss(name, case, inputs.transpose(0, 1), torch.from_numpy(arrays["targets"]))
    loss.backward()
    assert_close(loss.item(), value)
    assert_close(inputs.grad.reshape(gradient.shape), gradient)


def test_every_case_of_ride_is_compared():
    assert len(ride_cases()) == 33
    assert {name.split("/")[1] for name in ride_cases() if name.startswith("ride")} == {
        *("m045", "zero", "p045", "m020", "basetemp2", "baseloss05", "rf002", "maxm03_s10"),
        *("experts1", "experts2", "nocounts", "noextra"),
    }


def distilled_cases() -> list[str]:
    return [name for name in golden.table("losses/ride_losses.json")["cases"] if name.startswith("distill/")]


@pytest.mark.parametrize("name", distilled_cases())
def test_values_and_gradients_of_distillation(name):
    arrays = golden.arrays("losses/ride_losses.npz")
    case = golden.table("losses/ride_losses.json")["cases"][name]
    inputs = torch.from_numpy(arrays["expert_logits"]).requires_grad_()
    logits, teacher = inputs.transpose(0, 1), torch.from_numpy(arrays["teacher_logits"])
    labels, epoch = torch.from_numpy(arrays["targets"]), case["epoch"]
    if name == "distill/noextra":
        loss = cross_entropy(logits.mean(dim=1, keepdim=True), labels)
    else:
        arguments = case["args"]
        factor = arguments["additional_diversity_factor"]
        ride = RIDELoss(counts(), diversity_factor=factor, reweight_after=160, collaborative=factor == 0)
        # The original has a factor for both terms, `DistilledLoss` one for the teacher's term.
        ride_factor = arguments.get("ride_loss_factor", 1.0)
        factor = arguments.get("additional_distill_loss_factor", 1.0) / ride_factor
        temperature = arguments["distill_temperature"]
        criterion = DistilledLoss(ride, temperature=temperature, factor=factor, published=True)
        loss = ride_factor * criterion(logits, labels, epoch, teacher_logits=teacher)
    loss.backward()
    assert_close(loss.item(), arrays[f"{name}/loss_value"])
    assert_close(inputs.grad.reshape(arrays[f"{name}/grad"].shape), arrays[f"{name}/grad"])


def test_every_case_of_distillation_is_compared():
    assert len(distilled_cases()) == 11


def swin_cases() -> list[str]:
    return list(golden.table("losses/swin_losses.json")["cases"])


def swin_loss(name: str, case: dict, logits: torch.Tensor, labels: torch.Tensor, soft: torch.Tensor) -> torch.Tensor:
    """Computes the loss of one of RIDE-Swin's cases, from cosines (B, E, C), which RIDE-Swin's losses scale."""
    arguments, margins, scaled = case["args"], ldam_margins(counts()), 30 * logits
    match name.split("/"):
        case ["ride", *_]:
            factor = arguments["additional_diversity_factor"]
            criterion = RIDELoss(
                counts(),
                diversity_factor=factor,
                diversity_mean=True,
                temperature_spread=arguments["reweight_factor"],
                reweight_after=arguments["reweight_epoch"],
                collaborative=factor == 0,
            )
            return criterion(scaled, labels, case["epoch"], soft)
        case ["soft_ce"]:
            return CrossEntropyLoss(counts())(logits, labels, 1, soft)
        case [kind, which]:
            weight = {
                "noweight": None,
                "idx0": effective_number_weights(counts(), 0.0),
                "idx1": effective_number_weights(counts()),
            }[which]
            return ldam(scaled, labels, margins, 30, weight, soft if kind == "ldam_soft" else None)
        case _:
            raise AssertionError(name)


@pytest.mark.parametrize("name", swin_cases())
def test_values_and_gradients_of_ride_swin(name):
    arrays = golden.arrays("losses/swin_losses.npz")
    case = golden.table("losses/swin_losses.json")["cases"][name]
    value, gradient = arrays[f"{name}/loss_value"], arrays[f"{name}/grad"]
    experts = len(gradient) if gradient.ndim == 3 else 1
    inputs = torch.from_numpy(arrays["expert_logits"][:experts]).requires_grad_()
    labels, soft = (torch.from_numpy(arrays[key]) for key in ("hard_targets", "soft_targets"))
    loss = swin_loss(name, case, inputs.transpose(0, 1), labels, soft)
    loss.backward()
    assert_close(loss.item(), value)
    assert_close(inputs.grad.reshape(gradient.shape), gradient)


def test_every_case_of_ride_swin_is_compared():
    assert len(swin_cases()) == 26
    assert {name.split("/")[0] for name in swin_cases()} == {"ride", "ldam_soft", "ldam_hard", "soft_ce"}


def test_constants():
    ride, swin = golden.arrays("losses/ride_losses.npz"), golden.arrays("losses/swin_losses.npz")
    assert_close(ldam_margins(counts()), ride["ride/margins"], 1e-6)
    assert_close(ldam_margins(counts()), swin["ldam/margins"], 1e-6)
    assert_close(effective_number_weights(counts()), ride["ride/class_weights"], 1e-6)
    assert_close(effective_number_weights(counts()), swin["ride/class_weights"], 1e-6)
    for name, beta in (("idx0", 0.0), ("idx1", 0.9999)):
        assert_close(effective_number_weights(counts(), beta), swin[f"ldam/{name}/class_weights"], 1e-6)
    for spread, expected in (
        (0.05, ride["ride/diversity_temperature_rf005"]),
        (0.02, ride["ride/diversity_temperature_rf002"]),
        (0.015, ride["ride/diversity_temperature_rf0015"]),
        (0.02, swin["ride/diversity_temperature"]),
    ):
        assert_close(class_temperatures(counts(), spread), expected, 1e-6)


# ---- slow versions ----


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def slow_cross_entropy(logits: np.ndarray, targets: np.ndarray, weight: list[float]) -> float:
    batch, experts, _ = logits.shape
    total = sum(
        -weight[targets[b]] * math.log(softmax(logits[b, e])[targets[b]]) for b in range(batch) for e in range(experts)
    )
    return total / sum(weight[target] for target in targets)


def slow_margins(class_counts: list[int], max_margin: float) -> list[float]:
    """Margins of LDAM: a constant divided by n^(1/4), so that the largest margin is ``max_margin``."""
    constant = max_margin * min(class_counts) ** 0.25
    return [constant / n**0.25 for n in class_counts]


def slow_divergence(logits: np.ndarray, temperature: list[float]) -> float:
    batch, experts, classes = logits.shape
    total = 0.0
    for b in range(batch):
        mean = [sum(logits[b, e, k] for e in range(experts)) / experts for k in range(classes)]
        p = softmax([mean[k] / temperature[k] for k in range(classes)])
        for e in range(experts):
            q = softmax([logits[b, e, k] / temperature[k] for k in range(classes)])
            total += sum(p[k] * math.log(p[k] / q[k]) for k in range(classes))
    return (sum(temperature) / classes) ** 2 * total / batch


@pytest.fixture(params=[0, 1, 2])
def batch(request):
    """Random logits (B, E, C) in float64 and targets (B,)."""
    generator = np.random.default_rng(request.param)
    experts = request.param + 1
    return 3 * generator.standard_normal((7, experts, 5)), generator.integers(0, 5, 7)


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(batch, weighted):
    logits, targets = batch
    weight = [0.2, 0.5, 1.0, 1.5, 1.8] if weighted else [1.0] * 5
    fast = cross_entropy(
        torch.from_numpy(logits),
        torch.from_numpy(targets),
        torch.tensor(weight, dtype=torch.float64) if weighted else None,
    )
    assert fast.item() == pytest.approx(slow_cross_entropy(logits, targets, weight), rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_with_soft_targets(batch, weighted):
    logits, labels = batch
    weight = [0.2, 0.5, 1.0, 1.5, 1.8] if weighted else [1.0] * 5
    soft = np.random.default_rng(9).dirichlet([1.0] * 5, len(labels))
    slow = 0.0
    for b, label in enumerate(labels):
        for expert in logits[b]:
            chances = softmax(expert)
            slow -= weight[label] * sum(soft[b, k] * math.log(chances[k]) for k in range(5)) / len(labels)
    fast = cross_entropy(
        torch.from_numpy(logits),
        torch.from_numpy(labels),
        torch.tensor(weight, dtype=torch.float64) if weighted else None,
        torch.from_numpy(soft),
    )
    assert fast.item() == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_distillation(batch, temperature):
    logits, labels = batch
    teacher = np.random.default_rng(7).standard_normal((len(labels), 5))
    slow = 0.0
    for b in range(len(labels)):
        p = softmax(list(teacher[b] / temperature))
        for expert in logits[b]:
            q = softmax(list(expert / temperature))
            slow += temperature**2 * sum(p[k] * math.log(p[k] / q[k]) for k in range(5)) / len(labels)
    inputs = torch.from_numpy(logits), torch.from_numpy(labels)
    assert distillation(inputs[0], torch.from_numpy(teacher), temperature).item() == pytest.approx(slow, rel=1e-12)
    criterion = DistilledLoss(CrossEntropyLoss(COUNTS), temperature=temperature, factor=0.5)
    total = criterion(*inputs, 1, teacher_logits=torch.from_numpy(teacher)).item()
    assert total == pytest.approx(cross_entropy(*inputs).item() + 0.5 * slow, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_ldam(batch, weighted):
    logits, targets = batch
    weight = [0.2, 0.5, 1.0, 1.5, 1.8] if weighted else [1.0] * 5
    margins = slow_margins(COUNTS, 0.4)
    lowered = logits.copy()
    for b, target in enumerate(targets):
        lowered[b, :, target] -= 7 * margins[target]
    inputs = torch.from_numpy(logits)
    copy = inputs.clone()
    fast = ldam(
        inputs,
        torch.from_numpy(targets),
        torch.tensor(margins, dtype=torch.float64),
        7.0,
        torch.tensor(weight, dtype=torch.float64) if weighted else None,
    )
    assert fast.item() == pytest.approx(slow_cross_entropy(lowered, targets, weight), rel=1e-12)
    assert torch.equal(inputs, copy), "the inputs are not changed"


def test_subtract_margins_keeps_half_precision():
    """Under autocast logits are in half precision, and margins in float32."""
    logits = torch.zeros(2, 3, 5, dtype=torch.bfloat16)
    lowered = subtract_margins(logits, torch.tensor([4, 0]), ldam_margins(COUNTS), 10.0)
    assert lowered.dtype == torch.bfloat16
    assert lowered[0, :, 4].tolist() == [-5.0] * 3
    assert lowered.count_nonzero() == 6


@pytest.mark.parametrize("temperature", [1.0, 2.5, [1.0, 0.9, 0.85, 0.8, 0.7]])
def test_divergence(batch, temperature):
    logits, _ = batch
    per_class = temperature if isinstance(temperature, list) else [temperature] * 5
    argument = torch.tensor(temperature, dtype=torch.float64) if isinstance(temperature, list) else temperature
    fast = divergence(torch.from_numpy(logits), argument)
    assert fast.item() == pytest.approx(slow_divergence(logits, per_class), rel=1e-10, abs=1e-12)


def test_divergence_of_certain_experts_is_finite():
    """A class whose probability is 0 in float32 does not lead to nan."""
    logits = torch.tensor([[[500.0, 0.0, -500.0], [480.0, 0.0, -300.0]]], requires_grad=True)
    loss = divergence(logits)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_gradient_of_divergence(batch):
    """It is (q - p) / B for the ensemble p and an expert q, because the ensemble is a constant."""
    logits = torch.from_numpy(batch[0]).requires_grad_()
    divergence(logits).backward()
    expert, ensemble = logits.detach().softmax(2), logits.detach().mean(1, keepdim=True).softmax(2)
    torch.testing.assert_close(logits.grad, (expert - ensemble) / len(logits))


@pytest.mark.parametrize("max_margin", [0.5, 0.3])
def test_margins(max_margin):
    assert ldam_margins(COUNTS, max_margin).tolist() == pytest.approx(slow_margins(COUNTS, max_margin), rel=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.9999])
def test_effective_number_weights(beta):
    """The weights are proportional to the inverse of the effective number, the sum of beta^i over i below n."""
    effective = [sum(beta**i for i in range(n)) for n in COUNTS]
    inverse = [1 / number for number in effective]
    expected = [value * len(COUNTS) / sum(inverse) for value in inverse]
    assert effective_number_weights(COUNTS, beta).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.05, 1.0])
def test_class_temperatures(spread):
    shares = [n / sum(COUNTS) for n in COUNTS]
    raw = [len(COUNTS) * share * spread + 1 - spread for share in shares]
    assert class_temperatures(COUNTS, spread).tolist() == pytest.approx([t / max(raw) for t in raw], rel=1e-6)


def test_spread_that_is_too_large():
    with pytest.raises(InputError, match=r"spread 1\.2"):
        class_temperatures(COUNTS, 1.2)


# ---- criteria ----


def random_batch(experts: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(6, experts, 5, generator=generator), torch.randint(0, 5, (6,), generator=generator)


@pytest.mark.parametrize("criterion", [CrossEntropyLoss, LDAMLoss, RIDELoss])
def test_deferred_reweighting_starts_after_its_epoch(criterion):
    logits, targets = random_batch()
    deferred, never, always = (criterion(COUNTS, reweight_after=after) for after in (7, None, 0))
    early, late = never(logits, targets, 1), always(logits, targets, 1)
    assert early.item() != pytest.approx(late.item(), rel=1e-3)
    assert [deferred(logits, targets, epoch).item() for epoch in (1, 7)] == [early.item()] * 2
    assert [deferred(logits, targets, epoch).item() for epoch in (8, 200)] == [late.item()] * 2


def test_temperatures_differ_between_classes_only_after_reweighting_started():
    logits, targets = random_batch()
    spread, even = (RIDELoss(COUNTS, reweight_after=7, temperature_spread=spread) for spread in (0.5, 0.0))
    assert spread(logits, targets, 7).item() == even(logits, targets, 7).item()
    assert spread(logits, targets, 8).item() != pytest.approx(even(logits, targets, 8).item(), rel=1e-3)


def test_ride_without_class_weights():
    """The original crashes."""
    logits, targets = random_batch()
    expected = ldam(logits, targets, ldam_margins(COUNTS)) - 0.45 * divergence(logits)
    torch.testing.assert_close(RIDELoss(COUNTS)(logits, targets, 500), expected)


@pytest.mark.parametrize("epoch", [1, 8])
def test_ride_without_diversity_is_ldam_of_each_expert(epoch):
    logits, targets = random_batch()
    ride = RIDELoss(COUNTS, diversity_factor=0.0, reweight_after=7)
    single = LDAMLoss(COUNTS, reweight_after=7)
    expected = sum(single(logits[:, e : e + 1], targets, epoch) for e in range(3))
    torch.testing.assert_close(ride(logits, targets, epoch), expected)


def test_collaborative_experts_have_the_same_gradient():
    logits, targets = random_batch()
    logits.requires_grad_()
    loss = LDAMLoss(COUNTS, collaborative=True)(logits, targets, 1)
    loss.backward()
    torch.testing.assert_close(loss, 3 * LDAMLoss(COUNTS)(logits.mean(1, keepdim=True), targets, 1))
    torch.testing.assert_close(logits.grad, logits.grad[:, :1].expand_as(logits))


CRITERIA = [CrossEntropyLoss, FocalLoss, LDAMLoss, LogitAdjustedLoss, RIDELoss]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_constants_move_with_the_criterion_and_are_not_saved(criterion):
    logits, targets = random_batch()
    moved = criterion(COUNTS, reweight_after=0).to(torch.float64)
    assert moved(logits.double(), targets, 1).dtype == torch.float64
    on_meta = criterion(COUNTS, reweight_after=0).to("meta")
    assert on_meta(logits.to("meta"), targets.to("meta"), 1).device.type == "meta"
    assert {buffer.device.type for buffer in on_meta.buffers()} == {"meta"}
    assert not on_meta.state_dict()


@pytest.mark.parametrize("epoch", [7, 8])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_losses_of_the_parts_of_a_batch_average_to_the_loss_of_the_batch(criterion, soft, epoch):
    logits, labels = random_batch()
    soft_targets = torch.rand(6, 5).softmax(dim=1) if soft else None
    loss = criterion(COUNTS, reweight_after=7)
    expected = loss(logits, labels, epoch, soft_targets)
    total = 0.0
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        targets = None if soft_targets is None else soft_targets[rows]
        total += (rows.stop - rows.start) * loss(logits[rows], labels, epoch, targets, rows)
    torch.testing.assert_close(total / 6, expected)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_logits_of_one_expert_need_no_dimension_for_experts(criterion):
    logits, labels = random_batch(experts=1)
    loss = criterion(COUNTS, reweight_after=7)
    assert torch.equal(loss(logits[:, 0], labels, 8), loss(logits, labels, 8))
    distilled, teacher_logits = DistilledLoss(loss, published=True), torch.randn(6, 5)
    flat, full = (distilled(inputs, labels, 8, teacher_logits=teacher_logits) for inputs in (logits[:, 0], logits))
    assert torch.equal(flat, full)


def test_functions_have_the_names_of_modules():
    """`longtail.losses.focal` is the function, whatever module was imported first."""
    REGISTRY.names()
    for name in ("cross_entropy", "distillation", "focal", "ldam"):
        assert callable(getattr(longtail.losses, name))


# ---- settings ----


@pytest.mark.parametrize("name", REGISTRY.names())
def test_every_loss_can_be_built_from_the_settings(name):
    criterion = build_criterion(LossConfig(name=name, reweight_after=0.75), COUNTS, epochs=8, scale=20.0)
    assert criterion.reweight_after == 6
    assert criterion(*random_batch(), 8).isfinite()


def test_settings_reach_the_criterion():
    settings = LossConfig(
        name="ride", max_margin=0.3, diversity_factor=-0.2, temperature_spread=0.1, collaborative=True
    )
    ride = build_criterion(settings, COUNTS, epochs=200, scale=20.0)
    assert (ride.scale, ride.diversity_factor, ride.collaborative, ride.reweight_after) == (20.0, -0.2, True, 160)
    assert torch.equal(ride.margins, ldam_margins(COUNTS, 0.3))
    assert torch.equal(ride.temperatures, class_temperatures(COUNTS, 0.1))
    assert build_criterion(LossConfig(name="focal", focal_gamma=3.0), COUNTS, 200, 30.0).gamma == 3.0


def test_a_new_loss_registers_itself():
    @register("shifted", shift="max_margin")
    class ShiftedLoss(Criterion):
        def __init__(self, class_counts, *, shift):
            super().__init__(class_counts)
            self.shift = shift

    try:
        assert "shifted" in REGISTRY.names()
        assert build_criterion(LossConfig(name="shifted", max_margin=0.25), COUNTS, 200, 30.0).shift == 0.25
    finally:
        del REGISTRY.added["shifted"]


def test_unknown_loss():
    with pytest.raises(InputError, match=r"'ridee'.*cross_entropy, focal, ldam.*did you mean 'ride'"):
        build_criterion(LossConfig(name="ridee"), COUNTS, 200, 30.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_losses_on_the_gpu_equal_those_on_the_cpu():
    logits, targets = random_batch()
    criterion = RIDELoss(COUNTS, reweight_after=0)
    on_cpu = criterion(logits, targets, 1)
    torch.testing.assert_close(criterion.cuda()(logits.cuda(), targets.cuda(), 1).cpu(), on_cpu)
