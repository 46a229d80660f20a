"""Experiment files, and the jobs that follow from them."""

from dataclasses import replace
from pathlib import Path

import pytest
from helpers.experiments import ROWS, write_experiment

import longtail
from longtail.experiments.reuse import copy_experts, reusable_runs
from longtail.experiments.spec import check_seeds, plan, read_experiment, select
from longtail.runs.run import Run
from longtail.utils.errors import InputError

CIRCULAR = {"a": {"recipe": "digits-lt-ce", "settings": {"teacher": "a"}}}


def plan_file(path, *arguments):
    return plan(read_experiment(path), path.parent / "runs", arguments)


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"rows": {}}, ["rows is {}"]),
        ({"rows": ["ce"]}, ["rows is ['ce']"]),
        ({"seeds": 3}, ["seeds is 3"]),
        ({"seeds": [1, 1]}, ["seeds is [1, 1]", "once"]),
        ({"seeds": [-1]}, ["seeds is [-1]"]),
        ({"seed": [1]}, ["'seed'", "title, seeds, settings, rows", "did you mean 'seeds'"]),
        ({"settings": [1]}, ["settings: is [1]"]),
        ({"rows": {"ce": {"recipy": "x"}}}, ["row 'ce'", "'recipy'", "recipe, settings, published, note"]),
        ({"rows": {"ce": {"name": "x"}}}, ["row 'ce'", "'name'"]),
        ({"rows": {"a/b": None}}, ["row 'a/b'", "'/'"]),
        ({"rows": {"ce": {"published": 39.1}}}, ["row 'ce': published: is 39.1"]),
        ({"rows": {"ce": {"published": {"overall": 391}}}}, ["published.overall is 391"]),
        ({"rows": {"ce": {"published": {"all": 39}}}}, ["row 'ce': published", "'all'", "overall, routed"]),
        ({"rows": {"digits-lt-c": None}}, ["row 'digits-lt-c'", "did you mean"]),
        ({"settings": {"training": {"epoch": 1}}}, ["row 'tau'", "'training.epoch'", "did you mean"]),
        ({"rows": CIRCULAR}, ["row 'a'", "circular"]),
    ],
)
def test_errors_in_a_file_are_named(tmp_path, changes, facts):
    with pytest.raises(InputError) as error:
        plan_file(write_experiment(tmp_path, **({"rows": ROWS} | changes)))
    assert all(fact in str(error.value) for fact in facts), str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--seed", "5"], ["row 'tau'", "'seed'", "--seeds"]),
        (["--name=x"], ["row 'tau'", "'name'"]),
        (["--training.epocs", "3"], ["'training.epocs'", "did you mean"]),
    ],
)
def test_wrong_settings_in_the_command_line(tmp_path, arguments, facts):
    with pytest.raises(InputError) as error:
        plan_file(write_experiment(tmp_path), *arguments)
    assert all(fact in str(error.value) for fact in facts), str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.yaml"):
        read_experiment(tmp_path / "nothing.yaml")


def test_seeds():
    assert check_seeds([2, 0], "x") == (2, 0)
    with pytest.raises(InputError, match="seeds is \\[True\\]"):
        check_seeds([True], "x")


def test_order_of_the_jobs(tmp_path):
    """Teachers come before their students; otherwise rows keep their order. All rows have one seed before the next."""
    jobs = plan_file(write_experiment(tmp_path, seeds=[3, 1]), "--training.epochs", "7")
    rows = ("tau", "ce", "student", "retrained")
    assert [job.name for job in jobs] == [f"{row}-seed{seed}" for seed in (3, 1) for row in rows]
    assert {job.config.training.epochs for job in jobs} == {7}
    assert [job.config.seed for job in jobs] == [3] * 4 + [1] * 4
    assert [job.config.name for job in jobs[:4]] == list(rows)
    assert jobs[2].config.teacher == str(tmp_path / "runs" / "ce-seed3")


def test_selected_rows_include_their_teachers(tmp_path):
    jobs = plan_file(write_experiment(tmp_path, seeds=[3, 1]))
    selected = ["ce-seed3", "student-seed3", "ce-seed1", "student-seed1"]
    assert [job.name for job in select(jobs, ["student"])] == selected
    with pytest.raises(InputError, match=r"no row 'taw'.*did you mean 'tau'"):
        select(jobs, ["taw"])


def test_rows_with_the_same_experts(tmp_path):
    rows = {
        "tau": {"recipe": "digits-lt-ce", "settings": {"classifier": {"method": "tau"}}},
        "ce": {"recipe": "digits-lt-ce"},
        "longer": {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 3}, "classifier": {"method": "tau"}}},
        "counted": {"recipe": "digits-lt-ce", "settings": {"evaluation": {"many_above": 50}}},
        "ride": {"recipe": "digits-lt-ride"},
        "unrouted": {"recipe": "digits-lt-ride", "settings": {"router": {"train": False}}},
        "other": {"recipe": "digits-lt-ride", "settings": {"loss": {"diversity_factor": -0.2}}},
        "elsewhere": {"recipe": "digits-lt-ride", "settings": {"data": {"root": "elsewhere"}}},
    }
    jobs = plan_file(write_experiment(tmp_path, rows, seeds=[0, 1]))
    assert {name: source.name for name, source in reusable_runs(jobs).items()} == {
        f"{row}-seed{seed}": f"{source}-seed{seed}"
        for seed in (0, 1)
        for row, source in {"tau": "ce", "counted": "ce", "unrouted": "ride"}.items()
    }


@pytest.mark.parametrize(
    ("changes", "decides"),
    [({"average": "probabilities"}, True), ({"views": "flip"}, True), ({"calibration_bins": 9}, False)],
)
@pytest.mark.parametrize("patience", [0, 2])
def test_experts_whose_best_epoch_is_chosen_in_another_way_are_others(tmp_path, patience, changes, decides):
    training = {"validate_every": 1, "patience": patience}
    rows = {
        name: {"recipe": "digits-lt-ce", "settings": {"training": training, "evaluation": evaluation}}
        for name, evaluation in {"first": {}, "second": changes}.items()
    }
    jobs = plan_file(write_experiment(tmp_path, rows, seeds=[0]))
    assert (reusable_runs(jobs) == {}) == (patience > 0 and decides)


def test_copied_experts_follow_the_settings_of_the_row(digits_run, tmp_path):
    evaluation = replace(digits_run.config.evaluation, average="probabilities")
    copy = Run(tmp_path / "copy")
    copy_experts(digits_run, copy, replace(digits_run.config, evaluation=evaluation))
    model, _ = copy.load_model()
    assert model.average == "probabilities"
    assert model.router is None
    assert copy.progress().has_experts
    assert not copy.is_finished
    again = Run(tmp_path / "again")
    copy_experts(copy, again, digits_run.config)
    assert longtail.load_model(again.folder).average == "logits"


@pytest.mark.slow
def test_experiments_of_the_repository_can_be_planned(tmp_path):
    files = sorted((Path(__file__).parents[2] / "benchmarks" / "accuracy").glob("*.yaml"))
    assert len(files) >= 4
    for file in files:
        jobs = plan(read_experiment(file), tmp_path)
        assert len({job.name for job in jobs}) == len(jobs)
