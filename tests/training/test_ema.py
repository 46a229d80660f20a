"""Weight averaging against the formula, written out."""

import pytest
import torch
from helpers.loaders import loader, small_split
from helpers.runs import EXPERTS_ONLY, are_equal, digits, untimed, untimed_results, weights

import longtail
from longtail.losses import RIDELoss
from longtail.models.multi_expert import create_model
from longtail.training.ema import WeightAverage
from longtail.training.loop import LoopOptions, fit
from longtail.training.tasks import TrainExperts


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("decay", [0.0, 0.15, 0.99])
def test_average_of_weights_and_batch_norms(decay, accumulation):
    torch.manual_seed(0)
    task = TrainExperts(create_model("resnet20", 4, 2), RIDELoss([9, 5, 3, 1]))
    average, states = WeightAverage(task.model, decay), [state(task.model)]
    options = LoopOptions(accumulation, average=average, on_step=lambda *step: states.append(state(task.model)))
    source = loader(small_split(), 8, shuffle=True)
    list(fit(task, source, torch.optim.SGD(task.parameters(), 0.1), lambda epoch: 0.1, 2, options))

    assert len(states) == 1 + 2 * 3
    expected = {name: value.double() for name, value in states[0].items()}
    for n, now in enumerate(states[1:]):
        limited = min(decay, (1 + n) / (10 + n))
        expected = {name: limited * value + (1 - limited) * now[name].double() for name, value in expected.items()}
    found = average.model.state_dict()
    for name, value in states[-1].items():
        if not value.is_floating_point():
            assert torch.equal(found[name], value)  # a number of batches
        else:
            torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-6)
            changes = "running" in name or "weight" in name
            assert torch.equal(found[name], value) == (decay == 0) or not changes


@pytest.mark.usefixtures("no_plots")
def test_a_run_evaluates_and_saves_the_average(experts_run, tmp_path, monkeypatch):
    made = []

    class Recorded(WeightAverage):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

    monkeypatch.setattr("longtail.training.experts.WeightAverage", Recorded)
    run = longtail.train(digits(EXPERTS_ONLY | {"training.ema": 0.9}), tmp_path / "run")
    (average,) = made
    assert are_equal(weights(run), average.model.state_dict())
    assert weights(run).keys() == weights(experts_run).keys()
    assert not are_equal(weights(run), weights(experts_run))
    assert untimed(run.history()) == untimed(experts_run.history())  # training does not depend on the average
    before = untimed_results(run.folder)
    longtail.evaluate(run)
    assert untimed_results(run.folder) == before
