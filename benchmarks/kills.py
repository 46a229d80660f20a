"""Kills a training at random moments, resumes it each time, and compares it with an uninterrupted training.

    python benchmarks/kills.py --kills 20

The runs train experts and router on the built-in digits, and save a checkpoint after every step, so that many kills
interrupt the writing of a file. If a run ends before the last kill, another one is started.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from result import report

from longtail.utils.files import read_metadata

SETTINGS = ("--training.checkpoint_every", "0", "--device", "cpu", "--data.val_spare", "50")
TIMED = ("seconds", "images_per_second")


def start(folder: Path, epochs: int) -> subprocess.Popen[str]:
    """Starts or resumes a run: the command is the same."""
    lengths = ("--training.epochs", str(epochs), "--router.epochs", str(2 * epochs))
    return subprocess.Popen(
        [sys.executable, "-m", "longtail", "train", "--output", str(folder), *SETTINGS, *lengths],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run failed: {errors}")


def interrupted_step(folder: Path, epochs: int) -> str:
    """Returns what a kill interrupted, as far as the files show."""
    if list(folder.glob(".*.unfinished")):
        return "while a file was being written"
    if (folder / "results.json").exists():
        return "at the end"
    if (router := folder / "checkpoint-router.safetensors").exists():
        return f"in epoch {read_metadata(router)['position']['epoch']} of the router"
    history = folder / "metrics.jsonl"
    done = len(history.read_text().splitlines()) if history.exists() else 0
    if done == epochs:
        return "between the stages"
    return f"in epoch {done + 1} of the experts" if (folder / "config.yaml").exists() else "before the first step"


def checkpoint_times(folder: Path) -> tuple[float, ...]:
    """Returns the times of the last checkpoints; a new checkpoint changes them."""
    with suppress(FileNotFoundError):  # a file is being replaced
        return tuple(path.stat().st_mtime for path in sorted(folder.glob("checkpoint-*.safetensors")))
    return ()


def train_with_kills(folder: Path, epochs: int, max_kills: int, rng: random.Random) -> list[str]:
    """Trains a run to its end, with up to ``max_kills`` kills; returns what each of them interrupted."""
    interrupted: list[str] = []
    changes = 16 * epochs  # of the checkpoints in both stages, approximately: a step replaces two files
    while True:
        process = start(folder, epochs)
        if len(interrupted) < max_kills:
            # After a random number of checkpoints, which does not depend on the speed, and a random time.
            left, last = rng.randrange(1 + 2 * changes // max_kills), checkpoint_times(folder)
            while process.poll() is None and left > 0:
                time.sleep(0.002)
                now = checkpoint_times(folder)
                left, last = left - (now != last), now
            time.sleep(rng.uniform(0.0, 0.1))
            if process.poll() is None:
                process.kill()
                process.wait()
                interrupted.append(interrupted_step(folder, epochs))
                continue
        wait(process)
        return interrupted


def results(folder: Path) -> tuple[bytes, list[list[dict[str, Any]]]]:
    """Returns the model file, and the metrics of both stages without the measured times."""
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    router = json.loads((folder / "router.json").read_text())["epochs"]
    metrics = [[{k: v for k, v in epoch.items() if k not in TIMED} for epoch in stage] for stage in (history, router)]
    return (folder / "model.safetensors").read_bytes(), metrics


def table(kills: int, epochs: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        uninterrupted = Path(temporary, "uninterrupted")
        wait(start(uninterrupted, epochs))
        expected = results(uninterrupted)
        size = len(expected[0])
        yield f"uninterrupted: {epochs} epochs of the experts, {2 * epochs} of the router, model of {size:,} bytes"
        done = number = 0
        while done < kills:
            number += 1
            folder = Path(temporary, str(number))
            interrupted = train_with_kills(folder, epochs, kills - done, rng)
            for step in interrupted:
                done += 1
                yield f"kill {done:>2}, run {number}: {step}"
            is_same = results(folder) == expected
            verdict = "equal, bit for bit" if is_same else "DIFFERENT"
            yield f"run {number}, killed {len(interrupted)} times: {verdict}"
            left = sorted({path.name for path in folder.iterdir()} - {path.name for path in uninterrupted.iterdir()})
            if not is_same or left:
                raise SystemExit(f"run {number} differs; files left behind: {left}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    report(table(options.kills, options.epochs, options.seed), "kills.txt")
