"""Killed (SIGKILL) where it hurts most, and gone on with each time: weights and records are those of a run left alone.

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

import dying
import pytest
from helpers import layouts
from helpers.runs import same

import longtail

SETTINGS = ["--training.epochs", "3", "--router.epochs", "4", "--training.checkpoint_every", "0", "--device", "cpu"]
SOURCE = Path(longtail.__file__).parent.parent

# Point, file, and the number of its writing in the process; in the order in which they lie in a run.
DEATHS = [
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


def python(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    done = python("-m", "longtail", "train", "--output", str(folder), *SETTINGS)
    assert done.returncode == 0, done.stderr
    return folder


def test_killed_again_and_again(whole, tmp_path):
    folder = tmp_path / "run"
    again = ["train", "--output", str(folder), *SETTINGS]
    for point, file, number in DEATHS:
        done = python(dying.__file__, point, file, str(number), *again)
        assert done.returncode == -signal.SIGKILL, (point, file, done.stdout, done.stderr)
        # Whatever is there can be read.
        if (folder / "model.safetensors").exists():
            longtail.load_model(folder)
        if file != "config":  # then there is a run
            again = ["train", "--resume", str(folder)]
    done = python("-m", "longtail", *again)
    assert done.returncode == 0, done.stderr
    same(whole, folder)
    assert longtail.Run(folder).environment()["packages"]


def stopped_by_a_scheduler(command: list[str], folder: Path, signalled: signal.Signals) -> None:
    """Signals to the whole job once there is a checkpoint: saved, exit code 75. Then the same command goes on."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    command = [sys.executable, "-m", "longtail", *command]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    while process.poll() is None and not list(folder.glob("checkpoint-*.safetensors")):
        time.sleep(0.02)
    os.killpg(process.pid, signalled)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert err == "longtail: stopped\n"
    assert f"longtail train --resume {folder}" in out
    assert list(folder.glob("checkpoint-*.safetensors"))
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert "Going on in" in done.stdout


def test_stopped_by_a_scheduler(whole, tmp_path):
    folder = tmp_path / "run"
    stopped_by_a_scheduler(["train", "--output", str(folder), *SETTINGS], folder, signal.SIGTERM)
    same(whole, folder)


@pytest.mark.parametrize("ignored", [False, True])
def test_a_terminal_that_hangs_up(tmp_path, ignored):
    """Stopped and saved, though nothing can be written any more; with nohup, not even noticed."""
    folder = tmp_path / "run"
    ours, theirs = pty.openpty()

    def take_terminal():
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    command = [sys.executable, "-m", "longtail", "train", "--output", str(folder), *SETTINGS]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.DEVNULL if ignored else theirs, stderr=theirs, start_new_session=True,
        preexec_fn=take_terminal, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    os.close(theirs)
    while process.poll() is None and not list(folder.glob("checkpoint-*.safetensors")):
        time.sleep(0.02)
        while select.select([ours], [], [], 0)[0]:
            os.read(ours, 1 << 16)
    os.close(ours)
    assert process.wait(timeout=120) == (0 if ignored else 75)
    assert ignored == longtail.Run(folder).is_finished
    assert ignored or list(folder.glob("checkpoint-*.safetensors"))


@pytest.mark.parametrize("signalled", [signal.SIGINT, signal.SIGUSR1])
def test_workers_that_decode_are_not_stopped_with_it(tmp_path, signalled):
    photos = layouts.write_folder(tmp_path / "photos", counts=(24, 12, 9))
    given = ["train", "--config", "folder", "--data.root", str(photos), "--data.image_size", "32", "--device", "cpu",
             "--data.cache_gib", "0", "--data.workers", "2", "--training.epochs", "4", "--training.batch_size", "4",
             "--model.backbone", "resnet20", "--training.checkpoint_every", "0", "--router.epochs", "2"]  # fmt: skip
    whole = tmp_path / "whole"
    assert python("-m", "longtail", *given, "--output", str(whole)).returncode == 0
    stopped_by_a_scheduler([*given, "--output", str(tmp_path / "run")], tmp_path / "run", signalled)
    same(whole, tmp_path / "run")
