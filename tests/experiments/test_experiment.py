"""One real experiment with the command line: shared experts, a teacher, interruptions."""

import json
import os
import signal
import time

import pytest
from helpers.experiments import write_experiment
from helpers.jobs import Job

import longtail
from longtail.cli import main
from longtail.experiments.runner import ExperimentOptions, run_experiment
from longtail.runs.run import Run

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
