"""Self-distillation of MDCS, against its authors' code and a slow version."""

import math

import numpy as np
import pytest
import torch
from helpers import golden

from longtail.losses import (
    CrossEntropyLoss,
    DistilledLoss,
    FocalLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    RIDELoss,
    SelfDistilledLoss,
    self_distillation,
)

COUNTS = [500, 90, 40, 12, 5]
CRITERIA = [CrossEntropyLoss, FocalLoss, LDAMLoss, LogitAdjustedLoss, RIDELoss]


def random_views(images=6, views=2, experts=3, seed=0):
    """Logits (V * B, E, C), far from 0, and labels (B,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(views * images, experts, len(COUNTS), generator=generator)
    return logits, torch.randint(0, len(COUNTS), (images,), generator=generator)


# ---- the authors' code ----


@pytest.mark.parametrize("case", golden.table("losses/mdcs_losses.json"), ids=lambda case: str(case["case"]))
def test_values_and_gradients_of_mdcs(case):
    arrays = golden.arrays("losses/mdcs_losses.npz")
    logits, labels, gradient = (arrays[f"{case['case']}_{name}"] for name in ("logits", "labels", "gradient"))
    inputs = torch.from_numpy(logits).double().requires_grad_()
    adjusted = LogitAdjustedLoss(case["class_counts"], prior_exponents=(-0.5, 1, 2.5))
    criterion = SelfDistilledLoss(adjusted, factor=0.6, rampup=20)
    loss = criterion.double()(inputs.transpose(0, 1), torch.from_numpy(labels).long(), case["epoch"])
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    np.testing.assert_allclose(inputs.grad, gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


def test_all_cases_of_mdcs_are_compared():
    epochs = {case["epoch"] for case in golden.table("losses/mdcs_losses.json")}
    assert {1, 10} <= epochs  # during the rise
    assert max(epochs) > 20


# ---- a slow version ----


def softmax(values):
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def slow_self_distillation(weak, strong, labels):
    total = 0.0
    for expert in range(weak.shape[1]):
        distances = []
        for b, label in enumerate(labels.tolist()):
            p, q = softmax(weak[b, expert].tolist()), softmax(strong[b, expert].tolist())
            if max(range(len(p)), key=p.__getitem__) == label:
                distances.append(sum(p[k] * math.log(p[k] / q[k]) for k in range(len(p))))
        total += sum(distances) / len(distances) if distances else 0.0
    return total


@pytest.mark.parametrize("seed", range(4))
def test_value(seed):
    logits, labels = random_views(seed=seed)
    weak, strong = logits.double().chunk(2)
    expected = slow_self_distillation(weak, strong, labels)
    assert expected > 0
    assert self_distillation(weak, strong, labels).item() == pytest.approx(expected, rel=1e-12)


def test_gradients_flow_through_the_strong_view_of_images_that_are_right():
    logits, labels = random_views()
    logits.requires_grad_()
    weak, strong = logits.chunk(2)
    self_distillation(weak, strong, labels).backward()
    weak_gradient, strong_gradient = logits.grad.chunk(2)
    assert not weak_gradient.any()
    assert torch.equal(strong_gradient.any(dim=2), weak.argmax(dim=2) == labels[:, None])


def test_nothing_is_learned_from_wrong_predictions():
    logits, labels = random_views()
    weak, strong = logits.chunk(2)
    weak = weak.scatter(2, labels[:, None, None].expand(-1, 3, 1), -100.0)
    strong.requires_grad_()
    loss = self_distillation(weak, strong, labels)
    loss.backward()
    assert loss == 0
    assert not strong.grad.any()


@pytest.mark.parametrize("factor", [0.0, 0.6])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_any_criterion(criterion, factor):
    """The mean of the criterion over the views, plus self-distillation of the logits that it adjusts."""
    logits, labels = random_views()
    base = criterion(COUNTS, reweight_after=0)
    loss = SelfDistilledLoss(base, factor=factor, rampup=4)(logits, labels, 3)
    weak, strong = logits.chunk(2)
    adjusted = [base.adjust(view, labels) for view in (weak, strong)]
    expected = (base(weak, labels, 3) + base(strong, labels, 3)) / 2
    expected += factor * 3 / 4 * slow_self_distillation(*adjusted, labels)
    torch.testing.assert_close(loss, expected)


def test_factor_rises_linearly():
    logits, labels = random_views()
    adjusted = LogitAdjustedLoss(COUNTS)
    plain = SelfDistilledLoss(adjusted, factor=0)(logits, labels, 1)
    full = SelfDistilledLoss(adjusted, factor=1)(logits, labels, 1) - plain
    for epoch, share in ((1, 0.1), (5, 0.5), (10, 1.0), (11, 1.0)):
        loss = SelfDistilledLoss(adjusted, factor=1, rampup=10)(logits, labels, epoch)
        torch.testing.assert_close(loss - plain, share * full)


def test_one_view_is_the_criterion_alone():
    logits, labels = random_views(views=1)
    assert torch.equal(SelfDistilledLoss(LDAMLoss(COUNTS))(logits, labels, 1), LDAMLoss(COUNTS)(logits, labels, 1))


def test_several_strong_views_are_averaged():
    logits, labels = random_views(views=3)
    weak, *strong = logits.chunk(3)
    criterion = CrossEntropyLoss(COUNTS)
    expected = sum(criterion(view, labels, 1) for view in (weak, *strong)) / 3
    expected += 0.6 * sum(self_distillation(weak, view, labels) for view in strong) / 2
    torch.testing.assert_close(SelfDistilledLoss(criterion)(logits, labels, 1), expected)


@pytest.mark.parametrize("published", [False, True])
def test_with_a_teacher(published):
    logits, labels = random_views()
    teacher = torch.randn(len(logits), len(COUNTS), generator=torch.Generator().manual_seed(1))
    base = LogitAdjustedLoss(COUNTS)
    distilled = DistilledLoss(base, published=published)
    loss = SelfDistilledLoss(distilled)(logits, labels, 1, teacher_logits=teacher)
    weak, strong = logits.chunk(2)
    parts = zip((weak, strong), teacher.chunk(2), strict=True)
    expected = sum(distilled(view, labels, 1, teacher_logits=by) for view, by in parts) / 2
    expected += 0.6 * self_distillation(*(base.adjust(view, labels) for view in (weak, strong)), labels)
    torch.testing.assert_close(loss, expected)


def test_parts_of_a_batch_average_to_the_criterion_of_the_batch():
    """All but self-distillation, which is averaged over the images of a part."""
    logits, labels = random_views()
    loss = SelfDistilledLoss(LDAMLoss(COUNTS, reweight_after=0), factor=0)
    soft = torch.rand(6, 5, generator=torch.Generator().manual_seed(1)).softmax(dim=1)
    for soft_targets in (None, soft):
        total = 0.0
        for rows in (slice(0, 2), slice(2, 6)):
            part = torch.cat([view[rows] for view in logits.chunk(2)])
            targets = None if soft_targets is None else soft_targets[rows]
            total += (rows.stop - rows.start) * loss(part, labels, 1, targets, rows)
        torch.testing.assert_close(total / 6, loss(logits, labels, 1, soft_targets))


def test_logits_of_one_expert_need_no_dimension_for_experts():
    logits, labels = random_views(experts=1)
    loss = SelfDistilledLoss(CrossEntropyLoss(COUNTS))
    assert torch.equal(loss(logits[:, 0], labels, 1), loss(logits, labels, 1))


def test_does_not_wait_for_the_device():
    """Meta tensors have no values: whatever needs one on the host fails."""
    criterion = SelfDistilledLoss(LogitAdjustedLoss(COUNTS), rampup=20).to("meta")
    logits, labels = random_views()
    assert criterion(logits.to("meta"), labels.to("meta"), 3).device.type == "meta"
