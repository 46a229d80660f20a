"""Commands that are killed at any of their writes, or find the disk full: the same command completes the run."""

import os
import shutil
import signal
from functools import partial
from itertools import count
from typing import NamedTuple

import pytest
from helpers import golden, jobs
from helpers.every_write import FULL_DISK, KILL, interrupt
from helpers.jobs import Job
from helpers.runs import assert_same_runs, digits

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
    "evaluate with another average": Case(
        ["evaluate", "run", "--evaluation.average", "probabilities", "--device", "cpu"], routed
    ),
    "convert": Case(["convert", "original.pth", "run"], original),
}


DONE = ("own classifier", "convert")
"""Commands that leave nothing to do, which the same command says"""


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("name", CASES)
class TestKilled:  # a class is what pytest-xdist gives to one of its workers
    def test_the_same_command_completes_the_run(self, name, tmp_path):
        check_every_write(name, KILL, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("no_plots")
@pytest.mark.parametrize("name", CASES)
class TestFullDisk:
    def test_the_same_command_completes_the_run(self, name, tmp_path):
        check_every_write(name, FULL_DISK, tmp_path)


def check_every_write(name, how, tmp_path):
    """Interrupts the command at each of its writes in turn, each time in a copy of the same folder."""
    case, start, expected = CASES[name], tmp_path / "start", tmp_path / "expected"
    same = assert_same_files if name == "convert" else assert_same_runs
    start.mkdir()
    case.prepare(start)
    jobs.run(case.command, tmp_path / "job", partial(os.chdir, shutil.copytree(start, expected)))
    for number in count(1):
        folder = shutil.copytree(start, tmp_path / str(number))
        first = Job(case.command, tmp_path / "first job", partial(interrupt, how, number, folder))
        code, left, note = first.wait(), content(folder / "run"), folder.with_suffix(".txt")
        is_finished = not note.exists()
        where = "finished" if is_finished else note.read_text()
        if is_finished:
            assert code == 0, first.err
        else:
            assert code == (-signal.SIGKILL if how == KILL else 2), (where, first.out, first.err)
        second = Job(case.command, tmp_path / "second job", partial(os.chdir, folder))
        assert second.wait() == (2 if is_finished and name in DONE else 0), (where, second.out, second.err)
        assert "Traceback" not in first.err + second.err, where
        same(expected / "run", folder / "run")
        if start.joinpath("run").exists():
            before = content(start / "run")
            is_new = before["model.safetensors"] != left["model.safetensors"]
            own_heads = {"classifier.json", "heads.safetensors"} if name == "own classifier" else set()
            allowed = {"results.json"} if is_new or how == KILL else set()  # the rest belongs to the earlier model
            assert before.keys() - left.keys() <= allowed | (own_heads if is_new else set()), where
        if is_finished:
            break
    assert number > 2


def assert_same_files(first, second):
    """As `assert_same_runs`, for runs without results."""
    assert content(first) == content(second)


def content(folder):
    """The files of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}
