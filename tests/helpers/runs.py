"""Settings of short runs, and comparisons of run folders."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

import longtail
from longtail.evaluation import evaluator
from longtail.reports import results

EXPERTS_ONLY = {"router.train": False, "router.max_accuracy_drop": None, "data.val_spare": 0}
"""Changes of `digits` for a run without router and validation images"""

TIMED = ("seconds", "images_per_second")
SOURCE = Path(longtail.__file__).parent.parent


def digits(changes=None, recipe="digits-lt-ride"):
    """Settings of a short run on the built-in digits: 2 epochs of the experts and 2 of the router, on the CPU."""
    settings = {"device": "cpu", "training.epochs": 2, "router.epochs": 2}
    return longtail.load_recipe(recipe, settings | (changes or {}))


def skip_reports(set_attribute):
    """Skips report, plots and long speed measurements, which take most of the time of a short run."""
    for name in ("write_report", "write_html"):
        set_attribute(results, name, lambda *arguments, **options: None)
    set_attribute(evaluator, "SPEED_SECONDS", 0.01)


def train_without_reports(config, folder):
    """Trains a run without report and plots; for fixtures that several tests share."""
    import pytest  # here, because processes without pytest import this module too

    with pytest.MonkeyPatch.context() as monkeypatch:
        skip_reports(monkeypatch.setattr)
        return longtail.train(config, folder)


def weights(run):
    """All tensors of a run's model file, by name."""
    return load_file(longtail.Run(getattr(run, "folder", run)).model_path)


def are_equal(first, second):
    """Whether two state dicts are equal, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def untimed(records):
    """Metrics of epochs without the measured times."""
    return [{name: value for name, value in record.items() if name not in TIMED} for record in records]


def untimed_results(folder):
    """results.json without measured speeds."""
    found = json.loads(Path(folder, "results.json").read_text())
    found.pop("images_per_second", None)
    for split in ("val", "test"):
        found.get(split, {}).get("routing", {}).pop("images_per_second", None)
    return found


def assert_same_runs(first, second):
    """Checks that two run folders hold the same model file, byte for byte, and the same metrics except for times."""
    a, b = longtail.Run(first), longtail.Run(second)
    assert untimed_results(first) == untimed_results(second)
    if (first / "router.json").exists():
        routers = [json.loads((folder / "router.json").read_text())["epochs"] for folder in (first, second)]
        assert untimed(routers[0]) == untimed(routers[1])
    assert a.model_path.read_bytes() == b.model_path.read_bytes()
    assert untimed(a.history()) == untimed(b.history())
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}


def environment(*paths):
    """Environment variables of a subprocess that computes as the tests do: one thread, this version of longtail."""
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (SOURCE, *paths)))}


def python(*arguments, timeout=300):
    """Runs Python in a subprocess and returns its result, with the output as text."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment())
