"""Kills a training at random moments, goes on with it each time, and compares with one that was left alone.

    python benchmarks/kills.py --kills 20

Each run of the built-in data has both stages and a checkpoint after every step, so that many kills fall into the
writing of a file. A run that ends before it was killed often enough is followed by another one.
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

from result import report
from safetensors import safe_open

SETTINGS = ("--training.checkpoint_every", "0", "--device", "cpu", "--data.val_spare", "50")
TIMED = ("seconds", "images_per_second")


def command(folder: Path, epochs: int) -> list[str]:
    """The same every time: it starts a run, or goes on with it."""
    length = ("--training.epochs", str(epochs), "--router.epochs", str(2 * epochs))
    return [sys.executable, "-m", "longtail", "train", "--output", str(folder), *SETTINGS, *length]


def start(folder: Path, epochs: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(folder, epochs),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run failed: {errors}")


def where(folder: Path, epochs: int) -> str:
    """What a kill interrupted, as far as the folder tells."""
    if list(folder.glob(".*.unfinished")):
        return "while a file was being written"
    if (folder / "results.json").exists():
        return "at the end"
    if (router := folder / "checkpoint-router.safetensors").exists():
        with safe_open(router, framework="pt") as file:
            at = json.loads(file.metadata()["longtail"])["position"]["epoch"]
        return f"in the router's epoch {at}"
    lines = (folder / "metrics.jsonl").read_text().count("\n") if (folder / "metrics.jsonl").exists() else 0
    if lines == epochs:
        return "between the stages"
    return f"in the experts' epoch {lines + 1}" if (folder / "config.yaml").exists() else "before the first step"


def written(folder: Path) -> tuple[float, ...]:
    """Changes whenever a checkpoint is written."""
    files = sorted(folder.glob("checkpoint-*.safetensors"))
    with suppress(FileNotFoundError):  # it is being replaced
        return tuple(path.stat().st_mtime for path in files)
    return ()


def killed(folder: Path, epochs: int, most: int, rng: random.Random) -> list[str]:
    """Trains to the end, killed at most so many times; says where."""
    places: list[str] = []
    changes = 16 * epochs  # of both stages, about: a step replaces two files
    while True:
        process = start(folder, epochs)
        if len(places) < most:
            # So many steps later, whatever a step takes today, and anywhere within one.
            left, last = rng.randrange(1 + 2 * changes // most), written(folder)
            while process.poll() is None and left > 0:
                time.sleep(0.002)
                now = written(folder)
                left, last = left - (now != last), now
            time.sleep(rng.uniform(0.0, 0.1))
            if process.poll() is None:
                process.kill()
                process.wait()
                places.append(where(folder, epochs))
                continue
        finished(process)
        return places


def outcome(folder: Path) -> tuple[bytes, list[dict[str, float]], list[dict[str, float]]]:
    """All of a run that must not differ: weights as bytes, the epochs of both stages but for their times."""
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    router = json.loads((folder / "router.json").read_text())["epochs"]
    plain = [[{k: v for k, v in record.items() if k not in TIMED} for record in part] for part in (history, router)]
    return ((folder / "model.safetensors").read_bytes(), *plain)


def table(kills: int, epochs: int, seed: int) -> Iterator[str]:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole = Path(temporary, "whole")
        finished(start(whole, epochs))
        expected = outcome(whole)
        yield f"left alone: {epochs} epochs of the experts, {2 * epochs} of the router, {len(expected[0]):,} bytes"
        done, runs = 0, 0
        while done < kills:
            runs += 1
            folder = Path(temporary, str(runs))
            places = killed(folder, epochs, kills - done, rng)
            same = outcome(folder) == expected
            left = sorted({path.name for path in folder.iterdir()} - {path.name for path in whole.iterdir()})
            for place in places:
                done += 1
                yield f"kill {done:>2}, run {runs}: {place}"
            yield f"run {runs}, killed {len(places)} times: {'the same, bit for bit' if same else 'DIFFERENT'}"
            if not same or left:
                raise SystemExit(f"run {runs} ended otherwise; left behind: {left}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    report(table(given.kills, given.epochs, given.seed), "kills.txt")
