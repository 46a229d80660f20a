"""Processes that are killed or signalled at the worst moments: the resumed run equals an uninterrupted one.

`benchmarks/kills.py` does the same at random moments.
"""

import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from helpers import jobs, layouts
from helpers.jobs import Job
from helpers.kill_at import kill_at
from helpers.runs import assert_same_runs, environment

import longtail

EXIT_STOPPED = 75
SETTINGS = ["--training.epochs", "3", "--router.epochs", "4", "--training.checkpoint_every", "0", "--device", "cpu"]

# Point, file, and the number of its writing in the process; in the order in which a run writes them.
KILLS = [
    ("before", "config", 1),
    ("in the middle", "checkpoint-experts", 3),
    ("between", "checkpoint-experts", 4),
    ("before", "model", 1),
    ("after", "model", 1),
    ("before", "metrics", 2),
    ("after", "metrics", 2),
    ("between", "checkpoint-router", 2),
    ("in the middle", "checkpoint-router", 2),
    ("before", "model", 1),
    ("before", "results", 1),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("runs")
    jobs.run(["train", "--output", base / "uninterrupted", *SETTINGS], base / "job")
    return base / "uninterrupted"


def start(command: list[str], **options) -> subprocess.Popen:
    """Starts Python itself, where it matters how a process ends or what its terminal is."""
    return subprocess.Popen(
        [sys.executable, "-m", "longtail", *command], env=environment(), start_new_session=True, **options
    )


def wait_for_checkpoint(is_running: Callable[[], bool], folder: Path) -> None:
    while is_running() and not list(folder.glob("checkpoint-*.safetensors")):
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    command = ["train", "--output", folder, *SETTINGS]
    for point, file, number in KILLS:
        job = Job(command, tmp_path / "job", partial(kill_at, point, file, number))
        assert job.wait() == -signal.SIGKILL, (point, file, job.out, job.err)
        if (folder / "model.safetensors").exists():
            longtail.load_model(folder)
        if file != "config":  # before it is written, there is no run to resume
            command = ["train", "--resume", folder]
    jobs.run(command, tmp_path / "job")
    assert_same_runs(uninterrupted, folder)
    assert longtail.Run(folder).environment()["packages"]


def stop_and_resume(command: list[str], folder: Path, number: signal.Signals) -> None:
    """Signals the job when it has a checkpoint, checks that the run is saved, and runs the same command again."""
    command = [*command, "--output", str(folder)]
    job = Job(command, folder.with_name("job"))
    wait_for_checkpoint(job.is_running, folder)
    os.killpg(job.pid, number)
    assert job.wait(120) == EXIT_STOPPED, job.err
    assert len(job.err.splitlines()) == 1
    assert f"longtail train --resume {folder}" in job.out
    assert list(folder.glob("checkpoint-*.safetensors"))
    assert "Resuming epoch" in jobs.run(command, folder.with_name("job")).out


@pytest.mark.slow
def test_a_run_that_a_scheduler_stops(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    stop_and_resume(["train", *SETTINGS], folder, signal.SIGTERM)
    assert_same_runs(uninterrupted, folder)


@pytest.mark.slow
@pytest.mark.parametrize("ignored", [False, True])
def test_a_run_whose_terminal_is_closed(tmp_path, ignored):
    """It is saved, although output fails from then on. With nohup it continues."""
    folder = tmp_path / "run"
    ours, theirs = pty.openpty()

    def take_terminal():
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    command = ["train", "--output", str(folder), *SETTINGS]
    stdout = subprocess.DEVNULL if ignored else theirs
    process = start(command, stdin=theirs, stdout=stdout, stderr=theirs, preexec_fn=take_terminal)
    os.close(theirs)
    while process.poll() is None and not list(folder.glob("checkpoint-*.safetensors")):
        time.sleep(0.02)
        while select.select([ours], [], [], 0)[0]:
            os.read(ours, 1 << 16)
    os.close(ours)
    assert process.wait(timeout=120) == (0 if ignored else EXIT_STOPPED)
    assert ignored == longtail.Run(folder).is_finished
    assert ignored or list(folder.glob("checkpoint-*.safetensors"))


class WithWorkers(NamedTuple):
    """A command that decodes images in two processes, and the folder of the run it makes if nothing interrupts it."""

    command: list[str]
    folder: Path


@pytest.fixture(scope="module")
def uninterrupted_with_workers(tmp_path_factory) -> WithWorkers:
    base = tmp_path_factory.mktemp("workers")
    photos = layouts.write_folder(base / "photos", counts=(24, 12, 9))
    command = ["train", str(photos), "--config", "folder-from-scratch", "--data.image_size", "32", "--device", "cpu",
               "--data.cache_gib", "0", "--data.workers", "2", "--training.epochs", "4", "--training.batch_size", "4",
               "--model.backbone", "resnet20", "--training.checkpoint_every", "0", "--router.epochs", "2"]  # fmt: skip
    jobs.run([*command, "--output", base / "run"], base / "job")
    return WithWorkers(command, base / "run")


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes that decode for the first loader, that of the training."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children][:2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_killed_or_frozen(uninterrupted_with_workers, tmp_path, number):
    """Nothing waits forever, the training is saved, and the same command completes it."""
    folder = tmp_path / "run"
    command = [*uninterrupted_with_workers.command, "--output", str(folder)]
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(lambda: process.poll() is None, folder)
    for worker in workers_of(process):
        os.kill(worker, number)
    if number == signal.SIGSTOP:
        time.sleep(1)  # until training waits
        process.send_signal(signal.SIGTERM)
    begin = time.monotonic()
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - begin < 30
    assert process.returncode == (2 if number == signal.SIGKILL else EXIT_STOPPED), err
    assert len(err.splitlines()) == 1
    assert number == signal.SIGSTOP or ("was killed" in err and "data.workers" in err)
    assert list(folder.glob("checkpoint-*.safetensors"))
    assert "Resuming epoch" in jobs.run(command, tmp_path / "job").out
    assert_same_runs(uninterrupted_with_workers.folder, folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_workers_ignore_the_signals_of_their_job(uninterrupted_with_workers, tmp_path, number):
    stop_and_resume(uninterrupted_with_workers.command, tmp_path / "run", number)
    assert_same_runs(uninterrupted_with_workers.folder, tmp_path / "run")
