"""Experiments: from a file of rows to a table, without training anything twice."""

import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import longtail
from longtail.cli import main
from longtail.experiments.processes import Trainings
from longtail.experiments.reuse import copy_experts, reusable_runs
from longtail.experiments.runner import run_experiment
from longtail.experiments.spec import check_seeds, chosen, plan, read_experiment
from longtail.experiments.table import agreement, markdown, numbers
from longtail.runs.run import Run
from longtail.utils.errors import InputError

SHORT = {"training": {"epochs": 2}, "model": {"backbone": "resnet20"}, "data": {"val_spare": 5}}
ROWS = {
    "tau": {"recipe": "digits-lt-ce", "settings": {"classifier": {"method": "tau"}}, "note": "on experts of ce"},
    "student": {"recipe": "digits-lt-ride", "settings": {"teacher": "ce"}, "published": {"routed": 95.5}},
    "ce": {
        "recipe": "digits-lt-ce",
        "published": {"overall": 91, "many": 1, "medium": 2, "few": 3, "source": "a paper"},
    },
    "retrained": {"recipe": "digits-lt-ce", "settings": {"classifier": {"method": "retrain", "epochs": 1}}},
}


def written(folder: Path, rows=ROWS, **others) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"title": "Small", "settings": SHORT, "rows": rows} | others, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """An experiment that was carried out, its folder and what it said."""
    folder = tmp_path_factory.mktemp("experiment")
    console = Console(record=True, width=200, quiet=False, file=(folder / "said").open("w"))
    page = run_experiment(
        written(folder), folder / "runs", jobs=2, command="longtail experiment small.yaml", console=console
    )
    return folder, page, console.export_text()


def test_everything_is_trained_and_told(done):
    folder, page, said = done
    assert sorted(path.name for path in (folder / "runs").iterdir() if path.is_dir()) == [
        "ce-seed0", "retrained-seed0", "student-seed0", "tau-seed0",
    ]  # fmt: skip
    assert "retrained-seed0: with the experts of ce-seed0" in said
    table = json.loads(page.with_suffix(".json").read_text())
    assert [row["name"] for row in table["rows"]] == ["tau", "ce", "student", "retrained"]
    for row in table["rows"]:
        results = json.loads((folder / "runs" / f"{row['name']}-seed0" / "results.json").read_text())["test"]
        assert row["mean"]["overall"] == results["accuracy"]
        assert row["mean"]["few"] == results["few"]
        assert row["std"]["overall"] is None
    text = page.read_text()
    assert "| 91.0 (1.0/2.0/3.0), a paper |" in text
    assert "| 95.5, routed |" in text
    assert "`digits-lt-ce` with `classifier.method: tau`; on experts of ce" in text
    assert "one run, seed 0" in text
    assert "`longtail experiment small.yaml`" in text


def test_a_row_that_shares_experts_is_as_if_it_had_not(done, tmp_path):
    folder, *_ = done
    for name in ("tau", "retrained"):
        shared = Run(folder / "runs" / f"{name}-seed0")
        donor = Run(folder / "runs" / "ce-seed0")
        assert shared.environment().get("experts_of") == "ce-seed0"
        epochs = sum(record["seconds"] for record in donor.history())  # the donor's tests are not this row's
        assert epochs < shared.environment()["training_seconds"]
        assert epochs < donor.environment()["training_seconds"]
        alone = longtail.train(shared.config, tmp_path / name)
        assert alone.model_path.read_bytes() == shared.model_path.read_bytes()
        assert alone.results()["test"] == shared.results()["test"]


def test_the_teacher_is_the_other_rows_run(done):
    folder, *_ = done
    student = Run(folder / "runs" / "student-seed0")
    assert student.config.teacher == str(folder / "runs" / "ce-seed0")
    assert not student.teacher_folder.exists()


def test_nothing_is_trained_twice(done):
    folder, page, _ = done
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/*")}
    page.unlink()
    console = Console(record=True, file=(folder / "said").open("w"))
    run_experiment(folder / "small.yaml", folder / "runs", console=console)
    assert page.exists()
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").glob("*/*")} == before
    assert "4 trainings, 4 of them finished before" in console.export_text()


def test_only_some_rows(done, capsys):
    folder, *_ = done
    arguments = ["--output", str(folder / "runs"), "--table", str(folder / "some.md"), "--rows", "student"]
    assert main(["experiment", str(folder / "small.yaml"), *arguments]) == 0
    table = json.loads((folder / "some.json").read_text())
    assert "2 trainings, 2 of them finished before" in capsys.readouterr().out
    assert [row["name"] for row in table["rows"]] == ["tau", "ce", "student", "retrained"]  # all that is finished


def test_by_another_path_it_is_the_same(done, monkeypatch, capsys):
    """Also the student, whose settings name the folder of its teacher."""
    folder, *_ = done
    monkeypatch.chdir(folder)
    assert main(["experiment", "small.yaml", "--output", "runs", "--table", "again"]) == 0
    assert "4 trainings, 4 of them finished before" in capsys.readouterr().out


def test_experts_that_are_given_follow_the_rows_settings(done, tmp_path):
    folder, *_ = done
    student = Run(folder / "runs" / "student-seed0")
    evaluation = replace(student.config.evaluation, average="probabilities")
    given = Run(tmp_path / "given")
    copy_experts(student, given, replace(student.config, evaluation=evaluation))
    model, metadata = given.load_model()
    assert model.average == metadata.architecture["average"] == "probabilities"
    assert model.router is None
    assert "router" not in metadata.architecture
    assert given.has_experts
    assert not given.is_finished
    back = Run(tmp_path / "back")
    copy_experts(given, back, student.config)
    assert back.load_model()[0].average == "logits"


def test_experts_of_other_settings_are_not_given(done):
    """A finished run that is not asked for may have been trained with other settings than its row has now."""
    folder, *_ = done
    experiment = read_experiment(folder / "small.yaml")
    for arguments, donors in (([], {"tau-seed0": "ce-seed0"}), (["--training.learning_rate", "0.001"], {})):
        every = plan(experiment, folder / "runs", arguments)
        trainings = Trainings(chosen(every, ["tau"]), every, 1, Console(quiet=True))
        found = {name: donor.name for name, donor in trainings.donors.items() if name == "tau-seed0"}
        assert found == donors


def test_a_table_that_cannot_be_written_ends_nothing_late(tmp_path, capsys):
    path = written(tmp_path)
    arguments = ["--output", str(tmp_path / "runs"), "--table", str(path / "table")]
    assert main(["experiment", str(path), *arguments]) == 2
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert "begins" not in out
    assert not (tmp_path / "runs").exists()


def test_a_failure_of_ours_stops_the_others(tmp_path):
    """Nobody would look after them."""
    rows = {name: {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 500}}} for name in ("a", "b")}
    rows["a"]["settings"]["training"]["epochs"] = 1
    planned = plan(read_experiment(written(tmp_path, rows)), tmp_path / "runs")

    def fail() -> None:
        raise OSError("the disk is full")

    trainings = Trainings(planned, planned, 2, Console(quiet=True), fail)
    with pytest.raises(OSError, match="the disk is full"):
        trainings.carry_out()
    assert [training.has_ended for training in trainings._running.values()] == [True]


def test_a_run_in_the_way_stays_as_it_is(done, capsys):
    folder, *_ = done
    before = (folder / "runs" / "ce-seed0" / "config.yaml").read_bytes()
    command = ["experiment", str(folder / "small.yaml"), "--output", str(folder / "runs"), "--training.epochs", "3"]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "tau-seed0 was trained with training.epochs 2, and not 3; give another --output, or remove it" in said
    assert (folder / "runs" / "ce-seed0" / "config.yaml").read_bytes() == before


def test_finished_runs_of_other_images_are_no_rows(done, tmp_path, capsys):
    """Two folders of pictures may be called alike inside."""
    folder, *_ = done
    command = ["experiment", str(folder / "small.yaml"), "--output", str(folder / "runs")]
    assert main([*command, "--data.root", str(tmp_path)]) == 2
    assert f"-seed0 was trained with data.root data, and not {tmp_path}" in capsys.readouterr().err
    assert main([*command, "--data.root", str(Path.cwd() / "data"), "--rows", "ce"]) == 0  # the same, by another path


def test_students_of_a_teacher_that_has_gone(done, tmp_path, capsys):
    folder, *_ = done
    shutil.copytree(folder / "runs" / "student-seed0", tmp_path / "runs" / "student-seed0")
    student = Run(tmp_path / "runs" / "student-seed0")
    student.write_config(replace(student.config, teacher=str(tmp_path / "runs" / "ce-seed0")))
    assert main(["experiment", str(written(tmp_path)), "--output", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    teacher = tmp_path / "runs" / "ce-seed0"
    assert f"{student.folder} learned from {teacher}, which is not finished or was removed" in said
    assert not teacher.exists()


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_what_killed_a_training_is_told(tmp_path, jobs):
    rows = {"ce": {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 500}}}}
    said = Console(record=True, width=200, file=(tmp_path / "said").open("w"))
    planned = plan(read_experiment(written(tmp_path, rows)), tmp_path / "runs")
    trainings = Trainings(planned, planned, int(jobs), said)

    def kill() -> None:
        while not (running := list(trainings._running.values())):
            time.sleep(0.02)
        running[0].process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    trainings.carry_out()
    killer.join()
    assert trainings.failed == ["ce-seed0"]
    assert "ce-seed0: failed (killed by SIGKILL)" in said.export_text()


def test_a_row_that_fails_leaves_the_others(tmp_path, capsys):
    rows = {
        "absent": {"recipe": "cifar100-lt-ce", "settings": {"data": {"root": str(tmp_path / "list.txt")}}},
        "pupil": {"recipe": "digits-lt-ride", "settings": {"teacher": "absent"}},
        "ce": {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 1}}},
    }
    (tmp_path / "list.txt").write_text("no folder")
    path = written(tmp_path, rows)
    assert main(["experiment", str(path), "--output", str(tmp_path / "runs"), "--jobs", "2"]) == 2
    out, err = capsys.readouterr()
    assert "absent-seed0: failed (" in out
    assert "pupil-seed0: not trained, because absent-seed0 could not be" in out
    assert err.count("\n") == 1
    assert "not trained: absent-seed0, pupil-seed0; the others are in" in err
    text = (tmp_path / "runs" / "table.md").read_text()
    assert "| absent | not trained yet |" in text
    assert Run(tmp_path / "runs" / "ce-seed0").is_finished


def test_stopped_and_gone_on_with(tmp_path):
    rows = {"ce": {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 40}}}}
    path = written(tmp_path, rows)
    command = [sys.executable, "-m", "longtail", "experiment", str(path), "--output", str(tmp_path / "runs")]
    run = Run(tmp_path / "runs" / "ce-seed0")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    while process.poll() is None and not run.epochs_done:
        time.sleep(0.02)
    for _ in range(5):  # as schedulers do: that asks for nothing new
        process.send_signal(signal.SIGTERM)
        time.sleep(0.02)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert "Killed" not in out
    assert "Stopped; the same command goes on" in out
    assert not run.is_finished
    assert 0 < run.epochs_done < 40
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "ce-seed0: goes on" in done.stdout
    assert Run(run.folder).is_finished
    assert "| ce |" in (tmp_path / "runs" / "table.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": {}}, "rows is {}; it must name at least one row"),
        ({"rows": ["ce"]}, "rows is ['ce']; it must name"),
        ({"seeds": 3}, "seeds is 3; it must be a list of whole numbers from 0"),
        ({"seeds": [1, 1]}, "seeds is [1, 1]; each one counts once"),
        ({"seeds": [-1]}, "seeds is [-1]; it must be"),
        ({"seed": [1]}, "unknown 'seed'; there is title, seeds, settings, rows; did you mean 'seeds'?"),
        ({"settings": [1]}, "settings: is [1]; it must hold 'name: value'"),
        (
            {"rows": {"ce": {"recipy": "x"}}},
            "row 'ce': unknown 'recipy'; there is recipe, settings, published, note",
        ),
        ({"rows": {"a/b": None}}, "row 'a/b': the name of a row becomes that of a folder"),
        ({"rows": {"ce": {"published": 39.1}}}, "row 'ce': published: is 39.1; it must hold"),
        ({"rows": {"ce": {"published": {"overall": 391}}}}, "published.overall is 391; it must be an accuracy in %"),
        ({"rows": {"ce": {"published": {"all": 39}}}}, "row 'ce': published: unknown 'all'; there is overall, routed"),
        ({"rows": {"digits-lt-c": None}}, "row 'digits-lt-c': no recipe or file 'digits-lt-c'; did you mean"),
        ({"settings": {"training": {"epoch": 1}}}, "row 'tau': unknown setting 'training.epoch' in overrides; did you"),
        (
            {"rows": {"a": {"recipe": "digits-lt-ce", "settings": {"teacher": "a"}}}},
            "row 'a' is in the end its own teacher",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, capsys, changes, message):
    path = written(tmp_path, **({"rows": ROWS} | changes))
    assert main(["experiment", str(path), "--output", str(tmp_path / "runs")]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.yaml"], "no file 'nothing.yaml'"),
        (["FILE", "--rows", "taw"], "no row 'taw'; there is tau, ce, student, retrained; did you mean 'tau'?"),
        (["FILE", "--seeds", "0-2"], "argument --seeds: '0-2' must be numbers separated by commas, such as 0,1,2"),
        (["FILE", "--seeds", "0,0"], "--seeds: seeds is [0, 0]; each one counts once"),
        (["FILE", "--seed", "5"], "row 'tau': 'seed' is no setting of an experiment; seeds are given by"),
        (["FILE", "--name=x"], "row 'tau': 'name' is no setting of an experiment; a row has its name"),
        (["FILE", "--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["FILE", "--training.epocs", "3"], "unknown setting 'training.epocs'; did you mean"),
    ],
)
def test_wrong_arguments(tmp_path, monkeypatch, capsys, arguments, message):
    path = written(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["experiment", *[str(path) if word == "FILE" else word for word in arguments]]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["small.yaml"]


def test_the_order_of_trainings(tmp_path):
    """Teachers before students, otherwise as they stand in the file; all rows with one seed before the next seed."""
    experiment = read_experiment(written(tmp_path, seeds=[3, 1]))
    planned = plan(experiment, tmp_path, ["--training.epochs", "7"])
    assert [one.name for one in planned] == [
        f"{row}-seed{seed}" for seed in (3, 1) for row in ("tau", "ce", "student", "retrained")
    ]
    assert all(one.config.training.epochs == 7 for one in planned)
    assert [one.config.seed for one in planned] == [3] * 4 + [1] * 4
    assert [one.config.name for one in planned[:4]] == ["tau", "ce", "student", "retrained"]
    assert [one.name for one in chosen(planned, ["student"])] == [
        "ce-seed3",
        "student-seed3",
        "ce-seed1",
        "student-seed1",
    ]


def test_who_gives_experts_to_whom(tmp_path):
    rows = {
        "tau": {"recipe": "digits-lt-ce", "settings": {"classifier": {"method": "tau"}}},
        "ce": {"recipe": "digits-lt-ce"},
        "longer": {"recipe": "digits-lt-ce", "settings": {"training": {"epochs": 3}, "classifier": {"method": "tau"}}},
        "pluralize": {"recipe": "digits-lt-ce", "settings": {"evaluation": {"many_above": 50}}},
        "ride": {"recipe": "digits-lt-ride"},
        "unrouted": {"recipe": "digits-lt-ride", "settings": {"router": {"train": False}}},
        "other": {"recipe": "digits-lt-ride", "settings": {"loss": {"diversity_factor": -0.2}}},
        "elsewhere": {"recipe": "digits-lt-ride", "settings": {"data": {"root": "elsewhere"}}},
    }
    planned = plan(read_experiment(written(tmp_path, rows, seeds=[0, 1])), tmp_path)
    donors = {name: donor.name for name, donor in reusable_runs(planned).items()}
    assert donors == {
        f"{row}-seed{seed}": f"{donor}-seed{seed}"
        for seed in (0, 1)
        for row, donor in {"tau": "ce", "pluralize": "ce", "unrouted": "ride"}.items()
    }


def entry(name: str, values: list[float], published: dict | None = None, routed: float | None = None) -> dict:
    one = dict.fromkeys(("balanced", "many", "medium", "few", "ece", "routed_macs", "seconds"))
    seeds = [one | {"seed": seed, "overall": value, "macs": 1.5e9} for seed, value in enumerate(values)]
    mean = one | {"overall": statistics.mean(values), "macs": 1.5e9, "routed": routed}
    std = dict.fromkeys(mean) | {"overall": statistics.stdev(values) if len(values) > 1 else None}
    described = {"recipe": name, "settings": {}, "note": "", "published": published}
    return {"name": name, "seeds": seeds, "mean": mean, "std": std, **described}


def test_pairs_in_the_published_order():
    here, there = [0.3, 0.5, 0.4, 0.2], [39.0, 42.0, 48.0, 39.0]
    entries = [entry(str(i), [here[i]], {"overall": there[i]}) for i in range(4)]
    entries += [entry("unknown", [0.9]), entry("routed", [0.1], {"routed": 50.0}, routed=0.6)]
    here, there = [*here, 0.6], [*there, 50.0]
    pairs = [(i, j) for i, j in itertools.product(range(5), repeat=2) if there[i] < there[j]]
    assert agreement(entries) == (sum(here[i] < here[j] for i, j in pairs), len(pairs))
    assert agreement([]) == (0, 0)


def test_the_table_says_mean_and_deviation():
    packages = {"longtail": "1", "torch": "2"}
    environment = {"device": "cpu", "device_name": "A CPU", "threads": 2, "packages": packages}
    rows = [entry("a", [0.1, 0.2, 0.3]), entry("b", [0.25, 0.75])]
    table = {"title": "T", "command": "c", "seeds": [0, 1, 2], "rows": rows}
    table["environments"] = [environment, environment | {"python": "3"}, environment | {"threads": 1}]
    table["settings"] = {"training": {"epochs": 40}, "seed": 1}
    text = markdown(table)
    assert "\nSettings of all rows: `training.epochs: 40`, `seed: 1`.\n" in text
    assert "Settings of" not in markdown(table | {"settings": {}})
    assert "mean ± sample standard deviation over seeds 0, 1, 2" in text
    assert "| a | 20.0 ± 10.0 |" in text
    assert "| b (2 of 3 seeds) | 50.0 ± 35.4 |" in text
    assert "| 1.50 G |" in text
    assert "\nA CPU, 2 threads, longtail 1, torch 2; A CPU, 1 thread, longtail 1, torch 2. MACs" in text
    assert "pairs of rows" not in text
    rows = [entry("a", [0.1], {"overall": 1}), entry("b", [0.2], {"overall": 3}), entry("c", [0.3], {"overall": 2})]
    assert "2 of 3 pairs of rows are in the order" in markdown(table | {"rows": rows, "seeds": [0]})


def test_several_seeds_are_summed_up(done, tmp_path):
    """The same run under the names of three seeds, one of them with other results."""
    folder, *_ = done
    for seed in (0, 1, 2):
        shutil.copytree(folder / "runs" / "ce-seed0", tmp_path / "runs" / f"ce-seed{seed}")
        run = Run(tmp_path / "runs" / f"ce-seed{seed}")
        run.write_config(replace(run.config, seed=seed))
        results = run.results()
        results["test"]["accuracy"] = [0.1, 0.4, 0.4][seed]
        run.write_json("results.json", results)
    page = run_experiment(written(tmp_path, {"ce": ROWS["ce"]}, seeds=[0, 1, 2]), tmp_path / "runs")
    row = json.loads(page.with_suffix(".json").read_text())["rows"][0]
    assert row["mean"]["overall"] == pytest.approx(0.3)
    assert row["std"]["overall"] == pytest.approx(0.03**0.5)
    assert [seed["overall"] for seed in row["seeds"]] == [0.1, 0.4, 0.4]
    assert row["mean"]["macs"] == numbers(Run(tmp_path / "runs" / "ce-seed0"))["macs"] > 1e6


def test_the_shipped_experiments_can_be_planned(tmp_path):
    files = sorted((Path(__file__).parents[1] / "benchmarks" / "accuracy").glob("*.yaml"))
    assert len(files) >= 4
    for file in files:
        planned = plan(read_experiment(file), tmp_path)
        assert len({one.name for one in planned}) == len(planned)


def test_seeds_may_be_given(tmp_path):
    assert check_seeds([2, 0], "x") == (2, 0)
    with pytest.raises(InputError, match="seeds is \\[True\\]"):
        check_seeds([True], "x")
