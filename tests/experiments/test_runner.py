"""The jobs of an experiment and their processes, with a script in place of `longtail train`."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from helpers.experiments import write_experiment

from longtail.cli import main
from longtail.experiments.processes import JobRunner
from longtail.experiments.runner import ExperimentOptions, run_experiment
from longtail.experiments.spec import plan, read_experiment
from longtail.runs.run import Run
from longtail.runtime.process import Stopped
from longtail.utils.errors import InputError

ONE_EPOCH = {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 1}}}
SLOWER = {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 1, "learning_rate": 0.01}}}
ROWS = {"a": ONE_EPOCH, "b": SLOWER}
# Arguments of the script: -m longtail train --config $5 --output $7
FINISH = 'cp -r {run} "$7.part" && cp "$5" "$7.part/config.yaml" && rm -rf "$7" && mv "$7.part" "$7"'
FAIL = "echo first; echo 'longtail: the reason'; exit 2"
WAIT = "trap 'exit 75' TERM; while true; do sleep 0.05; done"


@pytest.fixture
def stub(monkeypatch, tmp_path, single_expert_run):
    """Replaces the trainings by a shell script, which can copy a finished run."""
    monkeypatch.setattr("longtail.experiments.processes.PAUSE", 0.01)

    def replace_by(script):
        path = tmp_path / "train"
        path.write_text(f"#!/bin/sh\n{script.format(run=single_expert_run.folder)}\n")
        path.chmod(0o755)
        monkeypatch.setattr("longtail.experiments.processes.sys.executable", str(path))

    return replace_by


def job_runner(folder, rows=ROWS, slots=2, **options):
    jobs = plan(read_experiment(write_experiment(folder, rows, settings={})), folder / "runs")
    return JobRunner(jobs, jobs, slots, **options)


def in_thread(when, action):
    """Calls a function as soon as a condition holds."""

    def wait():
        while not when():
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize("jobs", [1, 2])
def test_trains_each_row_and_writes_the_table(tmp_path, stub, jobs, caplog, single_expert_run):
    stub(FINISH)
    path = write_experiment(tmp_path, ROWS, settings={}, seeds=[0, 4])
    options = ExperimentOptions(jobs=jobs, command="longtail experiment small.yaml")
    with caplog.at_level("INFO", logger="longtail"):
        page = run_experiment(path, tmp_path / "runs", options)
    table = json.loads(page.with_suffix(".json").read_text())
    assert [(row["name"], len(row["seeds"])) for row in table["rows"]] == [("a", 2), ("b", 2)]
    accuracy = single_expert_run.results()["test"]["accuracy"]
    assert {row["mean"]["overall"] for row in table["rows"]} == {accuracy}
    assert {row["std"]["overall"] for row in table["rows"]} == {0}
    assert "`longtail experiment small.yaml`" in page.read_text()
    for row in ("a", "b"):
        for seed in (0, 4):
            assert Run(tmp_path / "runs" / f"{row}-seed{seed}").config.seed == seed
            assert f"{row}-seed{seed}: finished" in caplog.text


def test_finished_runs_are_not_trained_again(tmp_path, stub, caplog, monkeypatch):
    stub(FINISH)
    path = write_experiment(tmp_path, ROWS, settings={})
    page = run_experiment(path, tmp_path / "runs")
    stub("exit 1")
    page.unlink()
    monkeypatch.chdir(tmp_path)
    with caplog.at_level("INFO", logger="longtail"):
        run_experiment(path, "runs")  # the same folder by another path
    assert page.exists()
    assert "2 trainings, 2 of them finished before" in caplog.text


def test_means_and_deviations_over_seeds(tmp_path, stub):
    stub(FINISH)
    path = write_experiment(tmp_path, {"a": ONE_EPOCH}, settings={}, seeds=[0, 1, 2])
    run_experiment(path, tmp_path / "runs")
    for seed, accuracy in enumerate([0.1, 0.4, 0.4]):
        run = Run(tmp_path / "runs" / f"a-seed{seed}")
        results = run.results()
        results["test"]["accuracy"] = accuracy
        run.write_json("results.json", results)
    page = run_experiment(path, tmp_path / "runs")
    (row,) = json.loads(page.with_suffix(".json").read_text())["rows"]
    assert row["mean"]["overall"] == pytest.approx(0.3)
    assert row["std"]["overall"] == pytest.approx(0.03**0.5)
    assert [seed["overall"] for seed in row["seeds"]] == [0.1, 0.4, 0.4]


def test_existing_run_with_other_settings_is_an_error(tmp_path, stub):
    stub(FINISH)
    path = write_experiment(tmp_path, ROWS, settings={})
    run_experiment(path, tmp_path / "runs")
    config = (tmp_path / "runs" / "a-seed0" / "config.yaml").read_bytes()
    for argument, value in (("--training.epochs", "3"), ("--data.root", str(tmp_path))):
        with pytest.raises(InputError) as error:
            run_experiment(path, tmp_path / "runs", ExperimentOptions(arguments=[argument, value]))
        assert all(fact in str(error.value) for fact in ("a-seed0", f"{argument.removeprefix('--')} ", value))
    assert (tmp_path / "runs" / "a-seed0" / "config.yaml").read_bytes() == config
    same = ExperimentOptions(arguments=["--data.root", str(Path.cwd() / "data")])  # the same folder by another path
    run_experiment(path, tmp_path / "runs", same)


def test_experts_are_reused_only_with_the_same_settings(tmp_path, stub):
    stub(FINISH)
    rows = {"ce": ONE_EPOCH, "tau": {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 1}}}}
    rows["tau"]["settings"]["classifier"] = {"method": "tau", "tau": 1.0}
    path = write_experiment(tmp_path, rows, settings={})
    run_experiment(path, tmp_path / "runs", ExperimentOptions(rows=["ce"]))
    for arguments, sources in (([], {"tau-seed0": "ce-seed0"}), (["--training.learning_rate", "0.001"], {})):
        jobs = plan(read_experiment(path), tmp_path / "runs", arguments)
        runner = JobRunner([job for job in jobs if job.row.name == "tau"], jobs, 1)
        assert {name: job.name for name, job in runner.sources.items()} == sources


def test_failed_row_does_not_stop_the_others(tmp_path, stub, caplog):
    stub(f'case "$7" in *a-seed0) {FAIL};; *) {FINISH};; esac')
    rows = ROWS | {"student": {"recipe": "digits-lt-ride", "settings": {"teacher": "a"}}}
    path = write_experiment(tmp_path, rows, settings={})
    with caplog.at_level("INFO", logger="longtail"), pytest.raises(InputError) as error:
        run_experiment(path, tmp_path / "runs", ExperimentOptions(jobs=2))
    assert "a-seed0: failed (the reason)" in caplog.text
    assert "student-seed0: not trained, because a-seed0 failed" in caplog.text
    assert all(name in str(error.value) for name in ("a-seed0, student-seed0", "table.md"))
    assert "| a | not trained yet |" in (tmp_path / "runs" / "table.md").read_text()
    assert Run(tmp_path / "runs" / "b-seed0").is_finished


@pytest.mark.parametrize("slots", [1, 2])
def test_killed_training_fails(tmp_path, stub, caplog, slots):
    stub(WAIT)
    runner = job_runner(tmp_path, {"a": ONE_EPOCH}, slots)
    thread = in_thread(lambda: runner._running, lambda: runner._running[0].kill())
    with caplog.at_level("INFO", logger="longtail"):
        runner.run()
    thread.join()
    assert runner.failed == ["a-seed0"]
    assert "a-seed0: failed (killed by SIGKILL)" in caplog.text


def test_signal_is_passed_on_and_waited_for(tmp_path, stub, caplog):
    stub(WAIT)
    runner = job_runner(tmp_path)

    def stop():
        for _ in range(3):  # schedulers send it several times
            os.kill(os.getpid(), signal.SIGTERM)

    thread = in_thread(lambda: len(runner._running) == 2, stop)
    with caplog.at_level("INFO", logger="longtail"), pytest.raises(Stopped):
        runner.run()
    thread.join()
    assert {process.returncode for process in runner._running.values()} <= {75, -signal.SIGTERM}
    assert not runner.failed
    assert "the same command resumes" in caplog.text


def test_training_stopped_by_a_scheduler_stops_all(tmp_path, stub):
    stub(f'case "$7" in *a-seed0) exit 75;; *) {WAIT};; esac')
    runner = job_runner(tmp_path)
    with pytest.raises(Stopped):
        runner.run()
    assert not runner.failed


def test_error_of_our_own_stops_all(tmp_path, stub):
    stub(f'case "$7" in *a-seed0) {FINISH};; *) {WAIT};; esac')

    def fail():
        raise OSError("the disk is full")

    runner = job_runner(tmp_path, on_finished=fail)
    with pytest.raises(OSError, match="the disk is full"):
        runner.run()
    assert all(process.returncode is not None for process in runner._running.values())


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_training_that_a_killed_experiment_left_alive(tmp_path, stub, caplog, single_expert_run, is_finished):
    """Its end is waited for. If it was stopped, this experiment resumes it."""
    runner = job_runner(tmp_path, {"a": ONE_EPOCH}, slots=1)
    (job,) = runner.jobs
    locked, waited = threading.Event(), threading.Event()

    def train():
        with job.run.lock():
            if is_finished:
                shutil.copytree(single_expert_run.folder, job.run.folder, dirs_exist_ok=True)
                (job.run.folder / "results.json").unlink()
            locked.set()
            waited.wait(60)
            if is_finished:
                shutil.copy(single_expert_run.results_path, job.run.folder)

    thread = threading.Thread(target=train)
    thread.start()
    locked.wait(60)
    stub("exit 1" if is_finished else FINISH)
    waiter = in_thread(lambda: runner._running, waited.set)
    with caplog.at_level("INFO", logger="longtail"):
        runner.run()
    thread.join()
    waiter.join()
    assert not runner.failed
    assert job.run.is_finished
    lines = [record.getMessage() for record in caplog.records]
    assert ["waiting for its end" in line for line in lines][1]
    assert "a-seed0: finished" in lines[-1]


def test_a_training_that_a_killed_experiment_left_starting(tmp_path, stub, caplog):
    """It locks the run after this experiment has looked, so that the training of this one fails."""
    stub(f"while [ ! -e {tmp_path}/locked ]; do sleep 0.01; done; {FAIL}")
    runner = job_runner(tmp_path, {"a": ONE_EPOCH}, slots=1)
    (job,) = runner.jobs
    waits = threading.Event()

    def train():
        with job.run.lock():
            (tmp_path / "locked").touch()
            waits.wait(60)
            stub(FINISH)  # it was stopped; this experiment resumes it

    thread = in_thread(lambda: runner._running, train)
    waiter = in_thread(lambda: "waiting for its end" in caplog.text, waits.set)
    with caplog.at_level("INFO", logger="longtail"):
        runner.run()
    thread.join()
    waiter.join()
    assert not runner.failed
    assert job.run.is_finished


def test_a_killed_training_whose_workers_hold_its_lock(tmp_path, stub, caplog):
    """It fails. Taken for the training of another experiment it would be started again and again."""
    stub(f"while [ ! -e {tmp_path}/locked ]; do sleep 0.01; done; kill -9 $$")
    runner = job_runner(tmp_path, {"a": ONE_EPOCH}, slots=1)
    (job,) = runner.jobs

    def hold_lock():
        with job.run.lock():
            (tmp_path / "locked").touch()
            while not (runner.failed or "waiting for its end" in caplog.text):
                time.sleep(0.01)

    thread = in_thread(lambda: runner._running, hold_lock)
    with caplog.at_level("INFO", logger="longtail"):
        runner.run()
    thread.join()
    assert runner.failed == ["a-seed0"]
    assert "a-seed0: failed (killed by SIGKILL)" in caplog.messages


def test_jobs_share_the_machine(tmp_path, stub, monkeypatch):
    stub(f'echo "$OMP_NUM_THREADS $CUDA_VISIBLE_DEVICES" > "$7.env"; {FINISH}')
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr("longtail.experiments.processes.num_processors", lambda: 8)
    job_runner(tmp_path).run()
    texts = [(tmp_path / "runs" / f"{row}-seed0.env").read_text().split() for row in ("a", "b")]
    assert texts == [["4", "4"], ["4", "7"]]


def test_table_that_cannot_be_written_is_an_error_before_training(tmp_path, stub):
    stub(FINISH)
    path = write_experiment(tmp_path, ROWS, settings={})
    with pytest.raises((InputError, OSError)):
        run_experiment(path, tmp_path / "runs", ExperimentOptions(table=path / "table"))
    assert not (tmp_path / "runs").exists()


def test_missing_teacher_of_a_finished_student(tmp_path, digits_run):
    rows = {"ce": ONE_EPOCH, "student": {"recipe": "digits-lt-ride", "settings": {"teacher": "ce"}}}
    path = write_experiment(tmp_path, rows, settings={})
    shutil.copytree(digits_run.folder, tmp_path / "runs" / "student-seed0")
    (_, job) = plan(read_experiment(path), tmp_path / "runs")
    job.run.write_config(job.config)
    with pytest.raises(InputError) as error:
        run_experiment(path, tmp_path / "runs")
    assert all(str(tmp_path / "runs" / name) in str(error.value) for name in ("student-seed0", "ce-seed0"))
    assert not (tmp_path / "runs" / "ce-seed0").exists()


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["nothing.yaml"], ["'nothing.yaml'"]),
        (["FILE", "--rows", "taw"], ["'taw'", "did you mean 'tau'"]),
        (["FILE", "--seeds", "0,0"], ["--seeds", "[0, 0]"]),
        (["FILE", "--jobs", "0"], ["--jobs is 0"]),
    ],
)
def test_errors_of_the_command_are_one_line(tmp_path, monkeypatch, capsys, arguments, facts):
    path = write_experiment(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", *[str(path) if word == "FILE" else word for word in arguments]]) == 2
    err = capsys.readouterr().err
    assert all(fact in err for fact in facts)
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]
