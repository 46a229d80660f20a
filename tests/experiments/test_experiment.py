"""One real experiment with the command line: shared experts, a teacher, interruptions."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from helpers import every_write, kill_at
from helpers.experiments import write_experiment
from helpers.runs import environment, python

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


def test_reused_experts_give_the_same_run(finished, tmp_path):
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


def test_stop_and_resume(tmp_path):
    path = write_experiment(tmp_path, {"ce": {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 40}}}})
    command = ["-m", "longtail", "experiment", str(path), "--output", str(tmp_path / "runs")]
    run = Run(tmp_path / "runs" / "ce-seed0")
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment()}
    process = subprocess.Popen([sys.executable, *command], **options)
    while process.poll() is None and not run.model_path.is_file():
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert "the same command resumes" in out
    assert 0 < run.progress().epochs < 40
    done = python(*command, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "ce-seed0: resumes" in done.stdout
    assert run.is_finished
    assert "| ce |" in (tmp_path / "runs" / "table.md").read_text()


def untimed_rows(table, *names):
    """The rows of a table's JSON file without measured times."""
    rows = [row for row in json.loads(table.read_text())["rows"] if row["name"] in names]
    for row in rows:
        for numbers in (*row["seeds"], row["mean"], row["std"]):
            numbers.pop("seconds")
    return rows


def test_a_killed_experiment(finished, tmp_path):
    """Killed when a training starts, while it trains, and while the table is written. Trainings outlive it."""
    command = ["experiment", write_experiment(tmp_path), "--output", tmp_path / "runs", "--rows", "ce,tau"]
    log, run = tmp_path / "log", Run(tmp_path / "runs" / "ce-seed0")
    for is_time in (lambda: "ce-seed0: starts" in log.read_text(), run.config_path.is_file):
        with log.open("w") as output:
            words = [sys.executable, "-m", "longtail", *map(str, command)]
            process = subprocess.Popen(words, stdout=output, stderr=output, env=environment())
        while not is_time():
            assert process.poll() is None, log.read_text()
            time.sleep(0.01)
        process.kill()
        process.wait()
    for file in ("table.json", "table.md"):
        killed = python(kill_at.__file__, "before", file, 1, *command)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = python("-m", "longtail", *command)
    assert done.returncode == 0, done.stderr
    assert "2 trainings, 2 of them finished before" in done.stdout
    expected = finished[1].with_suffix(".json")
    assert untimed_rows(tmp_path / "runs" / "table.json", "ce", "tau") == untimed_rows(expected, "ce", "tau")
    assert "| ce |" in (tmp_path / "runs" / "table.md").read_text()


@pytest.mark.parametrize(("how", "code", "points"), [("kill", -signal.SIGKILL, 16), ("full disk", 2, 8)])
def test_each_write_of_an_experiment(single_expert_run, tmp_path, how, code, points):
    """Those of copied experts and of the table. A script stands in for the training, which has nothing left to do."""
    start, output = tmp_path / "start", tmp_path / "output"
    output.mkdir()
    settings = {"training": {"epochs": 1}, "router": {"epochs": 2}, "device": "cpu"}
    one_epoch = {"recipe": "digits-lt-ce", "settings": settings}
    other = {"recipe": "digits-lt-ce", "settings": settings | {"evaluation": {"average": "probabilities"}}}
    shutil.copytree(single_expert_run.folder, start / "runs" / "a-seed0")
    write_experiment(start, {"a": one_epoch, "b": other}, settings={})
    Run(start / "runs" / "a-seed0").write_config(replace(single_expert_run.config, name="a"))
    script = start / "train"
    script.write_text('#!/bin/sh\ncp runs/a-seed0/results.json "$7"\n')
    script.chmod(0o755)
    command = ["experiment", "small.yaml", "--output", "runs"]
    done = python(every_write.__file__, how, start, output, *command, timeout=1800)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == points
    for number, (where, first, second) in enumerate(lines, start=1):
        log = (output / f"{number}.log").read_text()
        assert (first, second) == (code, 0), (where, log)
        assert "Traceback" not in log, (where, log)
        assert contents(output / str(number)) == contents(output / "expected"), where


def contents(folder):
    """All files of a folder and its folders, by path, without what a killed process had not finished."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != UNFINISHED]
    return {path.relative_to(folder): path.read_bytes() for path in files}
