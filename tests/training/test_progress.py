"""What a log says of training: an epoch's line, and something in between where epochs are long."""

import io

from rich.console import Console

from longtail.training.progress import TrainingProgress


def said(console):
    lines = console.file.getvalue().splitlines()
    console.file.seek(0)
    console.file.truncate()
    return lines


def test_long_epochs_are_not_silent(monkeypatch):
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    console = Console(file=io.StringIO(), width=200)
    with TrainingProgress(console, epochs=3, steps=100, num_images=1000) as progress:
        now = 50.0
        progress.step(10, 0.1, 2.5)
        assert said(console) == []
        now = 70.0
        progress.step(20, 0.1, None)  # the loss is read now and then only
        assert said(console) == []
        progress.step(25, 0.1, 2.25)
        assert said(console) == ["epoch 1/3, 25% of it  loss 2.250  lr 0.1  4 images/s"]
        now = 120.0
        progress.step(50, 0.1, 2.0)
        assert said(console) == []  # not yet another minute
        now = 140.0
        progress.step(100, 0.1, 2.0)
        assert said(console) == []  # the epoch's own line comes at once
        record = {"epoch": 1, "loss": 2.0, "accuracy": 0.5, "learning_rate": 0.1, "images_per_second": 7.0}
        progress.epoch(record)
        (line,) = said(console)
        assert line.startswith("epoch 1/3  loss    2.000")
