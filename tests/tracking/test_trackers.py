"""Trackers of a training: what they are sent, what a resumed run sends, and what happens if one fails."""

import logging
import signal
from dataclasses import asdict
from functools import partial

import pytest
from helpers.jobs import Job
from helpers.kill_at import kill_at
from helpers.runs import are_equal, digits, python, weights
from helpers.tracking import Recorder, event_reader, steps_by_tag

import longtail
from longtail.cli import main
from longtail.config.recipes import config_fingerprint, flat, load_recipe
from longtail.runtime.process import Stopped
from longtail.tracking import REGISTRY
from longtail.tracking.trackers import Trackers

EPOCH_METRICS = {"loss", "accuracy", "learning_rate", "seconds", "images_per_second"}
SETTINGS = {"track": "recorder", "training.checkpoint_every": 0}
VALIDATED = ["--data.val_fraction", "0.2", "--data.val_spare", "0", "--training.validate_every", "1"]


@pytest.fixture
def recorder(monkeypatch):
    """Registers the tracker "recorder", and returns its class."""
    REGISTRY.names()  # so that all others are registered
    kind = type("ThisRecorder", (Recorder,), {"calls": [], "fails_at": (), "needs": "json"})
    monkeypatch.setitem(REGISTRY.added, "recorder", kind)
    return kind


@pytest.mark.usefixtures("no_plots")
def test_a_training_sends_every_epoch_and_the_results_and_stays_the_same(recorder, digits_run, tmp_path):
    run = longtail.train(digits(SETTINGS), tmp_path / "run")
    (_, started), *epochs, (_, epoch, results, plots), (_, is_complete) = recorder.calls
    assert [(stage, number) for _, stage, number, _ in epochs] == [(s, n) for s in ("train", "router") for n in (1, 2)]
    for _, stage, number, metrics in epochs:
        assert metrics.keys() == {f"{stage}/{name}" for name in EPOCH_METRICS}
        assert stage != "train" or metrics["train/loss"] == run.history()[number - 1]["loss"]
    assert (started.name, started.settings["training.epochs"], started.settings["track"]) == ("run", 2, "recorder")
    assert (epoch, plots, is_complete) == (2, {}, True)
    test = run.results()["test"]
    for group in ("accuracy", "balanced", "many", "medium", "few", "ece"):
        assert results[f"results/test/{group}"] == test[group]
    assert results["results/test/expert_2/few"] == test["experts"][1]["few"]
    assert results["results/test/routing/relative_cost"] == test["routing"]["relative_cost"]
    assert results["results/test/routing/share_of_images/3_used"] == test["routing"]["shares"][2]
    assert "results/val/balanced" in results
    assert are_equal(weights(run), weights(digits_run))
    assert {path.name for path in run.folder.iterdir()} - {"tracking"} == {
        path.name for path in digits_run.folder.iterdir()
    } - {"plots", "report.md", "report.html"}


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    ("stage", "epoch"),
    [("train", 1), *(pytest.param(*at, marks=pytest.mark.slow) for at in (("train", 2), ("router", 1)))],
)
def test_a_resumed_run_sends_each_epoch_once(recorder, stage, epoch, tmp_path):
    """It is interrupted after an epoch was sent, and before a checkpoint has it."""
    recorder.fails_at = (stage, epoch, Stopped)
    config = digits(SETTINGS | {"track": "tensorboard,recorder"})
    with pytest.raises(Stopped):
        longtail.train(config, tmp_path / "run")
    assert recorder.calls[-1] == ("close", False)
    recorder.fails_at = ()
    run = longtail.resume(tmp_path / "run")
    sent = [call[1:3] for call in recorder.calls if call[0] == "epoch"]
    assert sent == [("train", 1), ("train", 2), ("router", 1), ("router", 2)]
    assert recorder.calls[-1] == ("close", True)
    steps = steps_by_tag(run.tracking_folder)
    assert steps["train/loss"] == steps["router/loss"] == [1, 2]
    assert steps["results/test/few"] == [2]


@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize(
    "where", ["start", *(pytest.param(at, marks=pytest.mark.slow) for at in (("train", 1), "results", "close"))]
)
def test_a_tracker_that_fails_gives_one_warning(recorder, where, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "longtail")
    recorder.fails_at = (*(where if isinstance(where, tuple) else (where, None)), ConnectionError)
    run = longtail.train(digits(SETTINGS | {"router.train": False, "router.max_accuracy_drop": None}), tmp_path / "run")
    assert run.is_finished
    (warning,) = [record.getMessage() for record in caplog.records]
    assert "recorder" in warning
    assert "no network" in warning
    assert "\n" not in warning
    done = recorder.calls[-1][0]
    assert done == ("epoch" if isinstance(where, tuple) else where)
    recorder.fails_at = ("results", None, ConnectionError)
    with pytest.raises(longtail.InputError, match="recorder: no network"):
        longtail.track(run, "recorder")


def test_wrong_names_and_missing_packages_are_found_before_training(recorder, monkeypatch, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(["train", "--output", str(output), "--track", "tensorboard,tensorbord"]) == 2
    assert "did you mean 'tensorboard'" in capsys.readouterr().err
    monkeypatch.setattr(recorder, "needs", "not_a_package")
    assert main(["train", "--output", str(output), "--track", "recorder"]) == 2
    assert "pip install 'longtail[recorder]'" in capsys.readouterr().err
    assert not output.exists()
    assert recorder.calls == []


def test_a_run_that_is_discarded_leaves_nothing(recorder, monkeypatch, tmp_path):
    def diverge(*arguments, **options):
        raise longtail.InputError("the loss is nan")

    monkeypatch.setattr("longtail.training.experts.fit", diverge)
    with pytest.raises(longtail.InputError, match="the loss is nan"):
        longtail.train(digits({"track": "tensorboard,recorder"}), tmp_path / "run")
    assert recorder.calls[-1] == ("close", False)
    assert not (tmp_path / "run").exists()


def test_other_processes_of_a_job_send_nothing(recorder, tmp_path):
    trackers = Trackers("recorder", is_active=False)
    with trackers.sending(None):
        trackers.epochs("train", {"epoch": 1, "loss": 1.0})
        trackers.results({"epoch": 1}, {})
    assert recorder.calls == []


def test_tracking_is_no_other_training():
    config = load_recipe("digits-lt-ride", {"track": "tensorboard"})
    assert config_fingerprint(config) == config_fingerprint(load_recipe("digits-lt-ride"))


@pytest.mark.slow
def test_nothing_is_imported_that_is_not_used():
    code = (
        "import sys, timm\nbefore = set(sys.modules)\n"  # timm imports wandb, if it is installed
        "import longtail.api\nfrom longtail.tracking import REGISTRY\nREGISTRY.names()\n"
        "print({'tensorboard', 'wandb', 'mlflow'} & (set(sys.modules) - before))"
    )
    assert python("-c", code).stdout.strip() == "set()"


class TestTensorBoard:
    def test_a_finished_run_is_sent_as_often_as_one_likes(self, digits_run_copy, capsys):
        run = digits_run_copy
        assert main(["track", str(run.folder), "--to", "tensorboard"]) == 0
        events = event_reader(run.tracking_folder)  # as a TensorBoard that stays open
        assert main(["track", str(run.folder), "--to", "tensorboard"]) == 0
        events.Reload()
        assert steps_by_tag(run.tracking_folder).items() >= {"train/loss": [1, 2], "results/test/few": [2]}.items()
        losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
        assert losses == [(n, pytest.approx(record["loss"])) for n, record in enumerate(run.history(), start=1)]
        results = run.results()["test"]
        for name in ("balanced", "few"):
            ((step, value),) = [(event.step, event.value) for event in events.Scalars(f"results/test/{name}")]
            assert (step, value) == (2, pytest.approx(results[name]))
        assert {tag.removeprefix("plots/") for tag in events.Tags()["images"]} == run.plots().keys()
        assert {"classes", "routing", "history"} <= run.plots().keys()
        (image,) = events.Images("plots/classes")
        assert image.encoded_image_string == run.plots()["classes"].read_bytes()
        assert image.width > 0

    def test_settings_are_hyper_parameters(self, digits_run_copy):
        from tensorboard.plugins.hparams.metadata import SESSION_START_INFO_TAG, parse_session_start_info_plugin_data

        longtail.track(digits_run_copy, "tensorboard")
        tags = event_reader(digits_run_copy.tracking_folder).PluginTagToContent("hparams")
        sent = parse_session_start_info_plugin_data(tags[SESSION_START_INFO_TAG]).hparams
        assert sent["loss.name"].string_value == "ride"
        assert sent["training.epochs"].number_value == 2
        assert sent["model.width"].string_value == "narrow"
        assert sent.keys() == flat(asdict(digits_run_copy.config)).keys()

    def test_an_interrupted_run_is_refused(self, digits_run_copy, capsys):
        digits_run_copy.results_path.unlink()
        assert main(["track", str(digits_run_copy.folder), "--to", "tensorboard"]) == 2
        assert "longtail train --resume" in capsys.readouterr().err

    @pytest.mark.slow
    def test_a_run_that_is_killed_has_each_step_once(self, tmp_path):
        folder = tmp_path / "run"
        settings = ["--training.epochs", "3", "--router.epochs", "2", "--training.checkpoint_every", "0", *VALIDATED]
        command = ["train", "--output", folder, "--device", "cpu", "--track", "tensorboard", *settings]
        for file, number in (("metrics", 2), ("checkpoint-router", 2), ("results", 1)):
            job = Job(command, tmp_path / "job", partial(kill_at, "after", file, number))
            assert job.wait() == -signal.SIGKILL, (file, job.out, job.err)
        assert "results/test/few" not in steps_by_tag(folder / "tracking")  # complete, but not sent
        assert main(["track", str(folder), "--to", "tensorboard"]) == 0
        steps = steps_by_tag(folder / "tracking")
        assert steps["train/loss"] == steps["train/learning_rate"] == [1, 2, 3]
        assert steps["val/balanced"] == [1, 2, 3]
        assert steps["results/val/balanced"] == [3]
        assert steps["router/loss"] == [1, 2]
        assert steps["results/test/routing/mean_experts"] == [3]
