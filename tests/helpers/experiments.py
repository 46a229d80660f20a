"""A small experiment on the built-in digits."""

import json
import sys
from pathlib import Path

SETTINGS = {"training": {"epochs": 2}, "model": {"backbone": "resnet20"}, "data": {"val_spare": 5}, "device": "cpu"}
ROWS = {
    "tau": {"recipe": "digits-lt-ce", "settings": {"classifier": {"method": "tau"}}, "note": "with the experts of ce"},
    "student": {"recipe": "digits-lt-ride", "settings": {"teacher": "ce"}, "published": {"routed": 95.5}},
    "ce": {
        "recipe": "digits-lt-ce",
        "published": {"overall": 91, "many": 1, "medium": 2, "few": 3, "source": "a paper"},
    },
    "retrained": {"recipe": "digits-lt-ce", "settings": {"classifier": {"method": "retrain", "epochs": 1}}},
}


def write_experiment(folder, rows=ROWS, **fields):
    """Writes an experiment to ``small.yaml`` in a folder, and returns its path."""
    path = folder / "small.yaml"
    content = {"title": "Small", "settings": SETTINGS, "rows": rows} | fields
    path.write_text(json.dumps(content))  # JSON is YAML
    return path


def train_by_script(prepare, *arguments):
    """Prepares a process; in its folder, the script ``train`` stands in for the trainings of an experiment."""
    prepare(*arguments)
    sys.executable = str(Path("train").resolve())
