"""Learning rates, epoch by epoch, against those of the original code."""

import numpy as np
import pytest
from helpers import golden

from longtail.config.schema import epoch_of
from longtail.training.schedules import cosine_rate, step_multiplier


@pytest.mark.parametrize("name", ["cifar_ride", "cifar_distill", "imagenet", "inaturalist"])
def test_steps_equal_the_original_ones(name):
    arrays = golden.arrays("schedules/ride_lr.npz")
    schedule = golden.table("schedules/ride_lr.json")["schedules"][name]
    arguments, epochs = schedule["args"], range(schedule["epochs"])
    milestones = [arguments["step1"], arguments["step2"]]
    ours = [step_multiplier(e, milestones, arguments["gamma"], arguments["warmup_epoch"]) for e in epochs]
    assert ours == arrays[f"{name}/mult"].tolist()
    assert [schedule["base_lr"] * multiplier for multiplier in ours] == arrays[f"{name}/lr"].tolist()


def test_the_cosine_of_the_router_equals_the_original_one():
    """The last digits differ, because PyTorch computes each rate from the one before."""
    original = golden.arrays("schedules/ride_lr.npz")["ea_cosine/lr"]
    np.testing.assert_allclose([cosine_rate(epoch, 5, 0.01) for epoch in range(5)], original, rtol=1e-12)


@pytest.mark.parametrize("name", ["batch512_10steps", "batch1024_10steps", "batch512_7steps"])
def test_the_cosine_of_swin_equals_the_original_one(name):
    original = golden.arrays("schedules/swin_lr.npz")[f"{name}/lr_after_update"]
    s = golden.table("schedules/swin_lr.json")["schedules"][name]
    ours = [
        cosine_rate(
            t / s["steps_per_epoch"], s["epochs"], s["base_lr"], s["min_lr"], s["warmup_epochs"], s["warmup_lr"]
        )
        for t in range(s["epochs"] * s["steps_per_epoch"])
    ]
    np.testing.assert_allclose(ours, original, rtol=1e-12)


def test_cosine_ends():
    assert cosine_rate(0, 10, 0.3, 0.1) == pytest.approx(0.3)
    assert cosine_rate(5, 10, 0.3, 0.1) == pytest.approx(0.2)
    assert cosine_rate(10, 10, 0.3, 0.1) == pytest.approx(0.1)


def test_warm_up():
    assert [step_multiplier(e, [], 0.1, 4) for e in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [step_multiplier(e, [], 0.1, 0) for e in range(2)] == [1, 1]
    assert [cosine_rate(e, 1000, 1.0, warmup=4, warmup_start=0.2) for e in (0, 1, 2)] == pytest.approx([0.2, 0.4, 0.6])


def test_a_milestone_during_warm_up_counts():
    assert step_multiplier(1, [1], 0.1, 4) == pytest.approx(0.1 * 0.5)


@pytest.mark.parametrize(
    ("when", "epochs", "expected"),
    [
        (0.8, 200, 160),
        (0.9, 200, 180),
        (0.025, 200, 5),
        (0.6, 100, 60),
        (0.8, 300, 240),
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996
        (0, 200, 0),
        (0.01, 10, 0),
        (1, 200, 1),
        (160, 200, 160),
        (160.0, 200, 160),
        (240, 200, 240),
    ],
)
def test_epoch_of(when, epochs, expected):
    assert epoch_of(when, epochs) == expected
    assert isinstance(epoch_of(when, epochs), int)
