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
from pathlib import Path

import pytest
from helpers import kill_at, layouts
from helpers.runs import assert_same_runs, environment, python

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
    folder = tmp_path_factory.mktemp("runs") / "uninterrupted"
    done = python("-m", "longtail", "train", "--output", folder, *SETTINGS)
    assert done.returncode == 0, done.stderr
    return folder


def start(command: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "longtail", *command], env=environment(), start_new_session=True, **options
    )


def wait_for_checkpoint(process: subprocess.Popen, folder: Path) -> None:
    while process.poll() is None and not list(folder.glob("checkpoint-*.safetensors")):
        time.sleep(0.02)


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again(uninterrupted, tmp_path):
    folder = tmp_path / "run"
    command = ["train", "--output", folder, *SETTINGS]
    for point, file, number in KILLS:
        done = python(kill_at.__file__, point, file, number, *command)
        assert done.returncode == -signal.SIGKILL, (point, file, done.stdout, done.stderr)
        if (folder / "model.safetensors").exists():
            longtail.load_model(folder)
        if file != "config":  # before it is written, there is no run to resume
            command = ["train", "--resume", folder]
    done = python("-m", "longtail", *command)
    assert done.returncode == 0, done.stderr
    assert_same_runs(uninterrupted, folder)
    assert longtail.Run(folder).environment()["packages"]


def stop_and_resume(command: list[str], folder: Path, number: signal.Signals) -> None:
    """Signals the job when it has a checkpoint, checks that the run is saved, and runs the same command again."""
    command = [*command, "--output", str(folder)]
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(process, folder)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == EXIT_STOPPED, err
    assert len(err.splitlines()) == 1
    assert f"longtail train --resume {folder}" in out
    assert list(folder.glob("checkpoint-*.safetensors"))
    done = python("-m", "longtail", *command)
    assert done.returncode == 0, done.stderr
    assert "Resuming epoch" in done.stdout


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


def command_with_workers(folder: Path) -> list[str]:
    photos = layouts.write_folder(folder / "photos", counts=(24, 12, 9))
    return ["train", str(photos), "--config", "folder-from-scratch", "--data.image_size", "32", "--device", "cpu",
               "--data.cache_gib", "0", "--data.workers", "2", "--training.epochs", "4", "--training.batch_size", "4",
               "--model.backbone", "resnet20", "--training.checkpoint_every", "0", "--router.epochs", "2"]  # fmt: skip


def workers_of(process: subprocess.Popen) -> list[int]:
    """The processes that decode for the first loader, that of the training."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children][:2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_is_killed_or_frozen(tmp_path, number):
    """Nothing waits for ever, the training is saved, and the same command completes it."""
    command, folder = command_with_workers(tmp_path), tmp_path / "run"
    expected = tmp_path / "expected"
    assert python("-m", "longtail", *command, "--output", expected).returncode == 0
    command += ["--output", str(folder)]
    process = start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_checkpoint(process, folder)
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
    done = python("-m", "longtail", *command)
    assert done.returncode == 0, done.stderr
    assert "Resuming epoch" in done.stdout
    assert_same_runs(expected, folder)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_workers_ignore_the_signals_of_their_job(tmp_path, number):
    command, expected = command_with_workers(tmp_path), tmp_path / "expected"
    assert python("-m", "longtail", *command, "--output", expected).returncode == 0
    stop_and_resume(command, tmp_path / "run", number)
    assert_same_runs(expected, tmp_path / "run")
