"""Runs that are interrupted between or within their stages, and resumed."""

from dataclasses import replace

import pytest
import torch
from helpers.runs import EXPERTS_ONLY, are_equal, digits, weights

import longtail
from longtail.runs.context import open_context
from longtail.runs.model_file import load_model_file
from longtail.runs.run import Run
from longtail.training import experts, stages
from longtail.training.experts import ExpertStage
from longtail.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("no_plots")


def interrupt(*arguments):
    raise KeyboardInterrupt


def test_a_run_resumes_at_the_stage_that_was_interrupted(digits_run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(stages, "train_router", interrupt)
        with pytest.raises(KeyboardInterrupt):
            longtail.train(digits_run.config, tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.progress() == (2, True, True, False, False)
    monkeypatch.setattr(ExpertStage, "train", interrupt)  # the experts are trained already
    longtail.resume(run)
    assert run.progress() == (2, True, True, True, True)
    assert are_equal(weights(run), weights(digits_run))
    with pytest.raises(InputError, match="is finished"):
        longtail.resume(run)
    with pytest.raises(InputError, match="not a run folder"):
        longtail.resume(tmp_path)


def test_models_of_earlier_epochs_are_kept(tmp_path):
    """The one of the last epoch is the result."""
    run = longtail.train(digits(EXPERTS_ONLY | {"training.epochs": 4, "training.keep_every": 2}), tmp_path / "run")
    kept = {path.name: load_model_file(path) for path in run.epochs_folder.iterdir()}
    assert {name: metadata.epoch for name, (_, metadata) in kept.items()} == {
        "epoch-2.safetensors": 2,
        "epoch-4.safetensors": 4,
    }
    assert are_equal(kept["epoch-4.safetensors"][0].state_dict(), run.load_model()[0].state_dict())
    assert not are_equal(kept["epoch-2.safetensors"][0].state_dict(), run.load_model()[0].state_dict())


def test_an_interrupted_evaluation_is_all_that_is_repeated(digits_run_copy, monkeypatch):
    run, trained = digits_run_copy, weights(digits_run_copy)
    (run.folder / "results.json").unlink()
    assert run.progress() == (2, True, True, True, False)
    for name in ("ExpertStage", "train_router"):
        monkeypatch.setattr(stages, name, None)
    longtail.resume(run)
    assert run.is_finished
    assert are_equal(weights(run), trained)


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_last_complete_epoch(tmp_path, monkeypatch):
    config = digits(EXPERTS_ONLY | {"training.epochs": 4})
    expected = longtail.train(config, tmp_path / "expected")
    fit = experts.fit

    def fit_until(last):
        def interrupted_fit(*arguments):
            for number, record in enumerate(fit(*arguments)):
                if number == last:
                    raise KeyboardInterrupt
                yield record

        return interrupted_fit

    run = Run(tmp_path / "run")
    for last in (2, 0):  # the second attempt completes no epoch
        monkeypatch.setattr(experts, "fit", fit_until(last))
        with pytest.raises(KeyboardInterrupt):
            longtail.resume(run) if run.config_path.exists() else longtail.train(config, run.folder)
        assert (run.progress().epochs, len(run.history())) == (2, 2)
    monkeypatch.setattr(experts, "fit", fit)
    longtail.resume(run)
    assert are_equal(weights(run), weights(expected))
    assert len(run.history()) == 4


def test_a_removed_model_is_trained_again(experts_run, experts_run_copy, monkeypatch):
    """Also if that is interrupted: the history of the removed model does not count."""
    run = experts_run_copy
    run.model_path.unlink()

    def interrupted_fit(*arguments):
        yield from map(interrupt, [arguments])

    with monkeypatch.context() as patch:
        patch.setattr(experts, "fit", interrupted_fit)
        with pytest.raises(KeyboardInterrupt):
            longtail.resume(run)
    assert run.progress() == (0, False, False, False, False)
    longtail.resume(run)
    assert are_equal(weights(run), weights(experts_run))


def test_a_downloaded_run_is_finished_although_its_training_ended_early(digits_run_copy):
    """A download has no history that says so."""
    run = digits_run_copy
    run.write_config(replace(run.config, training=replace(run.config.training, epochs=9)))
    assert not run.is_finished
    run.write_json("environment.json", {"pulled_from": "hf://owner/name@1"})
    assert run.is_finished


def test_a_converted_run_is_not_resumed(digits_run, tmp_path):
    converted = Run(tmp_path / "run")
    with converted.lock():
        converted.start(digits_run.config, {"converted_from": "x.pth"})
    with pytest.raises(InputError, match="converted"):
        longtail.resume(converted)


@pytest.mark.slow
def test_random_numbers_of_the_network_depend_on_seed_and_step_alone(tmp_path):
    changes = {"model.backbone": "resnet10", "model.drop_path_rate": 0.5, "training.epochs": 1}
    config = digits(EXPERTS_ONLY | changes)
    first = longtail.train(config, tmp_path / "a")
    torch.manual_seed(99)
    second = longtail.train(config, tmp_path / "b")
    assert are_equal(weights(first), weights(second))


def test_two_views_of_a_single_image_are_enough_for_batch_norms(tmp_path):
    """At the end of this network a feature map has one pixel."""
    changes = EXPERTS_ONLY | {"model.backbone": "resnet10", "model.num_experts": 1, "training.batch_size": 1}
    with pytest.raises(InputError, match="at least 2 per process"):
        ExpertStage(open_context(Run(tmp_path), digits(changes)))
    ExpertStage(open_context(Run(tmp_path), digits(changes | {"augmentation.views": "weak-strong"})))
