"""Commands that are killed at any of their writes, or find the disk full: the same command completes the run."""

import json
import shutil
import signal
from typing import NamedTuple

import pytest
from helpers import every_write, golden
from helpers.runs import assert_same_runs, digits, python

import longtail

SMALL = {
    "training.epochs": 1,
    "router.epochs": 1,
    "model.backbone": "resnet20",
    "model.num_experts": 2,
    "model.width": [8, 8],
}
DIGITS = ["--device", "cpu", *(word for name, value in SMALL.items() for word in (f"--{name}", str(value)))]
TAU = ["--classifier.method", "tau", "--classifier.tau", "1"]


def routed(folder):
    """A run with a router whose classifiers can be replaced by all methods."""
    return longtail.train(digits(SMALL | {"model.head": "linear"}), folder / "run")


def with_other_heads(folder):
    run = routed(folder)
    settings = longtail.load_recipe(run.config_path, {"classifier.method": "tau", "classifier.tau": 1.0})
    return longtail.retrain_classifier(run, config=settings)


def original(folder):
    shutil.copy(golden.path("ckpt/imbalance_cifar100_ride3.pth"), folder / "original.pth")


class Case(NamedTuple):
    """A command, and what makes the folder in which it runs."""

    command: list[str]
    prepare: object = lambda folder: None


CASES = {
    "train": Case(["train", "--output", "run", *DIGITS, "--router.max_accuracy_drop", "1"]),
    "router": Case(["router", "run", "--router.top_choices", "3", "--device", "cpu"], routed),
    "classifier": Case(["classifier", "run", *TAU, "--device", "cpu"], routed),
    "own classifier": Case(["classifier", "run", "--classifier.method", "none", "--device", "cpu"], with_other_heads),
    "evaluate": Case(["evaluate", "run", "--compute_budget", "1.3", "--device", "cpu"], routed),
    "convert": Case(["convert", "original.pth", "run"], original),
}


DONE = [("own classifier", "after heads.safetensors is removed"), ("convert", "after config.yaml is replaced")]
"""Commands and their last writes; nothing is left to do, which the same command says"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("name", CASES)
class TestKilled:  # a class is what pytest-xdist gives to one of its workers
    def test_the_same_command_completes_the_run(self, name, tmp_path):
        check_every_write(name, "kill", tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("name", CASES)
class TestFullDisk:
    def test_the_same_command_completes_the_run(self, name, tmp_path):
        check_every_write(name, "full disk", tmp_path)


def check_every_write(name, how, tmp_path):
    case, start, output = CASES[name], tmp_path / "start", tmp_path / "output"
    start.mkdir()
    output.mkdir()
    case.prepare(start)
    done = python(every_write.__file__, how, start, output, *case.command, timeout=1800)
    assert done.returncode == 0, done.stderr
    points = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(points) >= 2
    for number, (where, first, second) in enumerate(points, start=1):
        log = (output / f"{number}.log").read_text()
        is_done = (name, where) in DONE
        assert (first, second) == (-signal.SIGKILL if how == "kill" else 2, 2 if is_done else 0), (where, log)
        assert "Traceback" not in log, (where, log)
        same = assert_same_files if name == "convert" else assert_same_runs
        same(output / "expected/run", output / f"{number}/run")
        if start.joinpath("run").exists():
            before, after = (content(folder / "run") for folder in (start, output / f"{number} interrupted"))
            is_new = before["model.safetensors"] != after["model.safetensors"]
            own_heads = {"classifier.json", "heads.safetensors"} if name == "own classifier" else set()
            allowed = {"results.json"} if is_new or how == "kill" else set()  # the rest belongs to the earlier model
            assert before.keys() - after.keys() <= allowed | (own_heads if is_new else set()), where


def assert_same_files(first, second):
    """As `assert_same_runs`, for runs without results."""
    assert content(first) == content(second)


def content(folder):
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
