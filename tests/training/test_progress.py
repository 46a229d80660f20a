"""Log lines of a training: one for each epoch, and more within long epochs."""

import logging

from helpers.loaders import loader, small_split

from longtail.training.progress import TrainingProgress

RECORD = {"epoch": 1, "loss": 2.0, "accuracy": 0.5, "learning_rate": 0.1, "images_per_second": 7.0}


def test_long_epochs_are_logged_in_between(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "longtail")
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    def new_lines():
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    with TrainingProgress(3, loader(small_split(1000), batch_size=10)) as progress:
        now = 50.0
        progress.step(10, 0.1, 2.5)
        assert new_lines() == []
        now = 70.0
        progress.step(20, 0.1, None)  # the loss is not read at every step
        assert new_lines() == []
        progress.step(25, 0.1, 2.25)
        assert new_lines() == ["epoch 1/3 (25% done)  loss 2.250  lr 0.1  4 images/s"]
        now = 120.0
        progress.step(50, 0.1, 2.0)
        assert new_lines() == []  # less than a minute after the last line
        now = 140.0
        progress.step(100, 0.1, 2.0)
        assert new_lines() == []  # the line of the epoch follows at once
        progress.epoch(RECORD)
        (line,) = new_lines()
        assert line.startswith("epoch 1/3  loss    2.000  train  50.0%")
        assert line.endswith("4:40 left")


def test_a_resumed_epoch_counts_the_time_of_its_earlier_steps(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "longtail")
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)
    with TrainingProgress(3, loader(small_split(1000), batch_size=10), done=1, seconds=180.0) as progress:
        now = 70.0
        progress.step(95, 0.1, 2.5)  # 90 of the steps were done before
        now = 80.0
        progress.epoch(RECORD | {"epoch": 2})
    first, second = (record.getMessage() for record in caplog.records)
    assert first == "epoch 2/3 (95% done)  loss 2.500  lr 0.1  4 images/s"
    assert second.endswith("4:20 left")
