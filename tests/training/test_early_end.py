"""The end of training before its last epoch, and the model that it leaves."""

import logging
import re

import pytest
import torch
from helpers.runs import EXPERTS_ONLY, are_equal, assert_same_runs, digits, weights
from safetensors.torch import load_file

import longtail
from longtail.config.schema import TrainingConfig
from longtail.reports.saved import load_report
from longtail.runs.context import open_context
from longtail.runs.model_file import load_model_file
from longtail.runtime.process import Stopped
from longtail.training import experts
from longtail.training.early_end import EarlyEnd
from longtail.training.frozen_validation import FrozenValidation
from longtail.training.loop import fit
from longtail.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("no_plots")

# A learning rate at which the accuracy soon stops rising.
IMPATIENT = EXPERTS_ONLY | {
    "data.val_spare": 10,
    "training.epochs": 40,
    "training.patience": 2,
    "training.validate_every": 1,
    "training.keep_every": 1,
    "training.learning_rate": 0.5,
    "training.milestones": [],
    "training.checkpoint_every": 0,
}


def accuracies(*values):
    """Records of epochs; None: not validated."""
    return [{"epoch": n, "seconds": 1.0} | ({} if v is None else {"val_balanced": v}) for n, v in enumerate(values, 1)]


@pytest.mark.parametrize(
    ("values", "patience", "ends", "best"),
    [
        ([0.1], 1, False, True),
        ([0.1, 0.2], 1, False, True),
        ([0.2, 0.1], 1, True, False),
        ([0.2, 0.2], 1, True, False),  # equal is no gain
        ([0.2, 0.1, 0.2], 3, False, False),
        ([0.2, None, 0.1], 2, False, False),  # evaluations count, not epochs
        ([0.2, None, 0.1, None, 0.15], 2, True, False),
        ([0.2, 0.1, 0.3, None], 2, False, False),
        ([None, None], 2, False, True),
        ([None, 0.0], 2, False, True),
    ],
)
def test_patience(values, patience, ends, best):
    early_end = EarlyEnd(TrainingConfig(patience=patience, validate_every=1))
    assert early_end.reason(accuracies(*values)) == ("validation" if ends else None)
    assert early_end.is_result(accuracies(*values)) == best


@pytest.mark.parametrize(("minutes", "ends"), [(1.1 / 60, False), (0.9 / 60, True), (None, False)])
def test_another_epoch_must_fit_into_the_time(minutes, ends):
    early_end = EarlyEnd(TrainingConfig(max_minutes=minutes))
    assert early_end.reason(accuracies(0.1)) == ("time" if ends else None)
    assert early_end.is_result(accuracies(0.3, 0.1))


@pytest.mark.parametrize(("times", "ends"), [((41,), False), ((30, 41), False), ((20, 41), True)])
def test_another_epoch_takes_as_long_as_the_last_one_with_its_validation(times, ends, monkeypatch):
    """An epoch of one second is validated for longer; before the first one, a teacher may be trained."""
    clock = iter((0, *times))
    monkeypatch.setattr("longtail.training.early_end.time.monotonic", lambda: next(clock))
    early_end = EarlyEnd(TrainingConfig(max_minutes=1))
    reasons = [early_end.reason(accuracies(*[0.1] * number)) for number in range(1, len(times) + 1)]
    assert reasons == [None] * (len(times) - 1) + ["time" if ends else None]


def test_the_last_epoch_is_not_an_early_end():
    early_end = EarlyEnd(TrainingConfig(epochs=2, max_minutes=1e-9, patience=1, validate_every=1))
    assert early_end.reason(accuracies(0.2, 0.1)) is None


def test_the_best_validated_model_is_the_result(tmp_path):
    run = longtail.train(digits(IMPATIENT), tmp_path / "run")
    history = run.history()
    values = [record["val_balanced"] for record in history]
    best = values.index(max(values)) + 1
    assert len(history) == best + 2 < 40
    assert [record.get("ended") for record in history] == [None] * (len(history) - 1) + ["validation"]
    kept = load_file(run.epochs_folder / f"epoch-{best}.safetensors")
    assert are_equal(weights(run), kept)
    assert run.results()["epoch"] == best
    assert run.results()["val"]["balanced"] == pytest.approx(values[best - 1])
    with pytest.raises(InputError, match="is finished"):
        longtail.resume(run.folder)


@pytest.mark.slow
@pytest.mark.parametrize("epochs_left", [0, 1])
def test_an_interrupted_run_ends_as_early(epochs_left, tmp_path, monkeypatch):
    whole = longtail.train(digits(IMPATIENT), tmp_path / "whole")
    last = len(whole.history()) - epochs_left

    def interrupted(*arguments):
        for record in fit(*arguments):
            if record["epoch"] == last:
                raise KeyboardInterrupt
            yield record

    with monkeypatch.context() as patch:
        patch.setattr("longtail.training.experts.fit", interrupted)
        with pytest.raises(Stopped):
            longtail.train(digits(IMPATIENT), tmp_path / "part")
    longtail.resume(tmp_path / "part")
    assert_same_runs(whole.folder, tmp_path / "part")


def test_training_that_takes_too_long_ends_after_an_epoch(tmp_path, caplog):
    """Also before the first epoch that patience would validate."""
    changes = {"training.max_minutes": 1e-3, "training.epochs": 30, "training.validate_every": 5}
    changes |= {"training.patience": 1, "data.val_spare": 5}
    with caplog.at_level(logging.INFO):
        run = longtail.train(digits(EXPERTS_ONLY | changes), tmp_path / "run")
    assert [record.get("ended") for record in run.history()] == ["time"]
    assert run.is_finished
    assert "epoch 1 of 30" in caplog.text
    longtail.evaluate(run)
    assert re.fullmatch(r"1 of 30 epochs in \d+ s \(out of time\)", load_report(run)[0].epochs_and_time)


def test_patience_needs_validation():
    with pytest.raises(InputError, match=r"training.patience is 3; it must be 0 unless training.validate_every"):
        digits({"training.patience": 3})


@pytest.mark.parametrize(
    "trained", ["heads", *(pytest.param(name, marks=pytest.mark.slow) for name in ("all", "experts"))]
)
def test_validation_of_a_model_with_a_frozen_part(trained, tmp_path, monkeypatch):
    """The frozen part runs once for each validation image; the accuracies are those of the saved models."""
    computed = []

    class Counting(FrozenValidation):
        def __init__(self, loader, compute, max_bytes):
            super().__init__(loader, lambda images: computed.append(len(images)) or compute(images), max_bytes)

    monkeypatch.setattr(experts, "FrozenValidation", Counting)
    changes = {"data.val_spare": 5, "training.validate_every": 1, "training.keep_every": 1, "training.epochs": 3}
    run = longtail.train(digits(EXPERTS_ONLY | changes | {"training.trained_parts": trained}), tmp_path / "run")
    context = open_context(run, run.config)
    assert sum(computed) == (0 if trained == "all" else len(context.dataset.val))
    for record in run.history():
        model, _ = load_model_file(run.epochs_folder / f"epoch-{record['epoch']}.safetensors")
        right = [
            (model(batch.inputs).ensemble.argmax(dim=1) == batch.labels).float()
            for batch in context.eval_loader(context.dataset.val).epoch(0)
        ]
        assert record["val_accuracy"] == pytest.approx(torch.cat(right).mean().item())
