"""One real experiment with the command line: shared experts, a teacher, interruptions."""

import json
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from itertools import count

import pytest
from helpers import jobs
from helpers.every_write import FULL_DISK, KILL, interrupt
from helpers.experiments import train_by_script, write_experiment
from helpers.jobs import Job
from helpers.kill_at import kill_at

import longtail
from longtail.cli import main
from longtail.experiments.runner import ExperimentOptions, run_experiment
from longtail.runs.run import Run
from longtail.utils.files import UNFINISHED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished experiment, and its table."""
    folder = tmp_path_factory.mktemp("experiment")
    return folder, run_experiment(write_experiment(folder), folder / "runs", ExperimentOptions(jobs=2))


def test_table(finished):
    folder, page = finished
    names = ["ce-seed0", "retrained-seed0", "student-seed0", "tau-seed0"]
    assert sorted(path.name for path in (folder / "runs").iterdir() if path.is_dir()) == names
    table = json.loads(page.with_suffix(".json").read_text())
    assert [row["name"] for row in table["rows"]] == ["tau", "ce", "student", "retrained"]
    for row in table["rows"]:
        results = Run(folder / "runs" / f"{row['name']}-seed0").results()["test"]
        assert (row["mean"]["overall"], row["mean"]["few"]) == (results["accuracy"], results["few"])
        assert row["std"]["overall"] is None
    text = page.read_text()
    for fact in ("| 91.0 (1.0/2.0/3.0), a paper |", "| 95.5, routed |", "`classifier.method: tau`", "seed 0"):
        assert fact in text


def test_reused_experts_give_the_same_run(finished, tmp_path, no_plots):
    folder, _ = finished
    source = Run(folder / "runs" / "ce-seed0")
    expert_seconds = sum(record["seconds"] for record in source.history())
    assert expert_seconds < source.environment()["training_seconds"]
    for name in ("tau", "retrained"):
        shared = Run(folder / "runs" / f"{name}-seed0")
        assert shared.environment()["experts_of"] == "ce-seed0"
        assert expert_seconds < shared.environment()["training_seconds"]
        alone = longtail.train(shared.config, tmp_path / name)
        assert alone.model_path.read_bytes() == shared.model_path.read_bytes()
        assert alone.results()["test"] == shared.results()["test"]


def test_teacher_is_the_run_of_its_row(finished):
    folder, _ = finished
    student = Run(folder / "runs" / "student-seed0")
    assert student.config.teacher == str(folder / "runs" / "ce-seed0")
    assert not student.teacher_folder.exists()


def test_nothing_is_trained_twice(finished, monkeypatch, capsys):
    """Also if the folder has another path: the settings of the student name the folder of its teacher."""
    folder, _ = finished
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/*")}
    assert main(["experiment", "small.yaml", "--output", "runs", "--table", "again"]) == 0
    assert "4 of them finished before" in capsys.readouterr().out
    assert main(["experiment", "small.yaml", "--output", "runs", "--table", "again", "--rows", "student"]) == 0
    assert "2 of them finished before" in capsys.readouterr().out
    assert len(json.loads((folder / "again.json").read_text())["rows"]) == 4  # every finished row
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/*")} == before
    assert main(["experiment", "small.yaml", "--output", "runs", "--rows", "student", "tau"]) == 2  # not with a comma
    assert "unknown argument 'tau'" in capsys.readouterr().err


def test_stop_and_resume(tmp_path, capsys):
    path = write_experiment(tmp_path, {"ce": {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 15}}}})
    command = ["experiment", str(path), "--output", str(tmp_path / "runs")]
    run = Run(tmp_path / "runs" / "ce-seed0")
    job = Job(command, tmp_path / "job")
    while job.is_running() and not run.model_path.is_file():
        time.sleep(0.02)
    os.kill(job.pid, signal.SIGTERM)
    assert job.wait() == 75, job.err
    assert "the same command resumes" in job.out
    assert 0 < run.progress().epochs < 15
    assert main(command) == 0
    assert "ce-seed0: resumes" in capsys.readouterr().out
    assert run.is_finished
    assert "| ce |" in (tmp_path / "runs" / "table.md").read_text()


def untimed_rows(table, *names):
    """The rows of a table's JSON file without measured times."""
    rows = [row for row in json.loads(table.read_text())["rows"] if row["name"] in names]
    for row in rows:
        for numbers in (*row["seeds"], row["mean"], row["std"]):
            numbers.pop("seconds")
    return rows


def test_a_killed_experiment(finished, tmp_path, capsys):
    """Killed when a training starts, while it trains, and while the table is written. Trainings outlive it."""
    command = ["experiment", write_experiment(tmp_path), "--output", tmp_path / "runs", "--rows", "ce,tau"]
    run = Run(tmp_path / "runs" / "ce-seed0")
    for is_time in (lambda job: "ce-seed0: starts" in job.out, lambda job: run.config_path.is_file()):
        job = Job(command, tmp_path / "job")
        while not is_time(job):
            assert job.is_running(), job.err
            time.sleep(0.01)
        assert job.end(0) == -signal.SIGKILL
    for file in ("table.json", "table.md"):
        killed = Job(command, tmp_path / "job", partial(kill_at, "before", file, 1))
        assert killed.wait() == -signal.SIGKILL, killed.err
    assert "2 trainings, 2 of them finished before" in jobs.run(command, tmp_path / "job").out
    expected = finished[1].with_suffix(".json")
    assert untimed_rows(tmp_path / "runs" / "table.json", "ce", "tau") == untimed_rows(expected, "ce", "tau")
    assert "| ce |" in (tmp_path / "runs" / "table.md").read_text()


@pytest.mark.parametrize("how", [KILL, FULL_DISK])
def test_each_write_of_an_experiment(how, single_expert_run, tmp_path):
    """Those of copied experts and of the table. A script stands in for the training, which has nothing left to do."""
    start, expected = tmp_path / "start", tmp_path / "expected"
    one_epoch = {"training": {"epochs": 1}, "router": {"epochs": 2}, "device": "cpu"}
    rows = {"a": one_epoch, "b": one_epoch | {"evaluation": {"average": "probabilities"}}}
    shutil.copytree(single_expert_run.folder, start / "runs" / "a-seed0")
    rows = {name: {"recipe": "digits-lt-ce", "settings": settings} for name, settings in rows.items()}
    write_experiment(start, rows, settings={})
    Run(start / "runs" / "a-seed0").write_config(replace(single_expert_run.config, name="a"))
    script = start / "train"
    script.write_text('#!/bin/sh\ncp runs/a-seed0/results.json "$7"\n')
    script.chmod(0o755)
    command = ["experiment", "small.yaml", "--output", "runs"]
    jobs.run(command, tmp_path / "job", partial(train_by_script, os.chdir, shutil.copytree(start, expected)))
    for number in count(1):
        folder = shutil.copytree(start, tmp_path / str(number))
        first = Job(command, tmp_path / "first job", partial(train_by_script, interrupt, how, number, folder))
        code, note = first.wait(), folder.with_suffix(".txt")
        if not note.exists():
            break
        second = Job(command, tmp_path / "second job", partial(train_by_script, os.chdir, folder))
        where = note.read_text()
        assert (code, second.wait()) == (-signal.SIGKILL if how == KILL else 2, 0), (where, first.err, second.err)
        assert "Traceback" not in first.err + second.err, where
        assert contents(folder) == contents(expected), where
    assert code == 0, first.err
    assert number > 5


def contents(folder):
    """All files of a folder and its folders, by path, without what a killed process had not finished."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != UNFINISHED]
    return {path.relative_to(folder): path.read_bytes() for path in files}
