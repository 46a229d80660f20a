"""Weights & Biases, offline: what its files hold, which 'wandb sync' sends."""

import json
import os
import pty
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.runs import digits

import longtail
from longtail.runtime.process import Stopped
from longtail.tracking.wandb import WandB

pytest.importorskip("wandb", reason="wandb is not installed")
pytestmark = pytest.mark.slow

BLOCK, HEADER, FILE_HEADER = 32768, 7, 7


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)


def records(path):
    """Yields the protobuf records of a .wandb file, which is a log of LevelDB: blocks with fragments of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, whole = path.read_bytes(), FILE_HEADER, b""
    while position + HEADER <= len(content):
        if BLOCK - position % BLOCK < HEADER:  # padding
            position += BLOCK - position % BLOCK
            continue
        length, kind = struct.unpack_from("<xxxxHB", content, position)
        whole += content[position + HEADER : position + HEADER + length]
        position += HEADER + length
        if kind in (1, 4):  # full, last
            yield Record.FromString(whole)
            whole = b""


class Sent:
    """What all files of a run hold: runs, rows of the history, summary and files."""

    def __init__(self, run: longtail.Run):
        self.ids, self.config, self.rows, self.summary, self.files = set(), {}, [], {}, set()
        paths = sorted((run.tracking_folder / "wandb").glob("offline-run-*/*.wandb"))
        for record in (record for path in paths for record in records(path)):
            if record.HasField("run"):
                self.ids.add(record.run.run_id)
                self.project, self.name = record.run.project, record.run.display_name
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.HasField("history"):
                values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                self.rows.append(values)
            elif record.HasField("summary"):
                self.summary |= {
                    item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.summary.update
                }
            elif record.HasField("files"):
                self.files |= {Path(file.path).name for file in record.files.files}

    def steps(self, stage):
        return [row[f"{stage}/epoch"] for row in self.rows if f"{stage}/epoch" in row]


def test_a_finished_run_is_sent_once_however_often(digits_run_copy):
    run = digits_run_copy
    for _ in range(2):
        longtail.track(run, "wandb")
    sent = Sent(run)
    assert len(sent.ids) == 1
    assert (sent.project, sent.name) == ("longtail", "copy")
    assert sent.config["training.epochs"] == 2
    assert (sent.steps("train"), sent.steps("router")) == ([1, 2], [1, 2])
    assert [row["train/loss"] for row in sent.rows if "train/loss" in row] == [r["loss"] for r in run.history()]
    results = run.results()["test"]
    for name in ("balanced", "many", "medium", "few"):
        assert sent.summary[f"results/test/{name}"] == results[name]
    assert sent.summary["results/test/routing/relative_cost"] == results["routing"]["relative_cost"]
    assert all(any(name in file for file in sent.files) for name in run.plots())


@pytest.mark.usefixtures("no_plots")
def test_a_resumed_run_continues(tmp_path, monkeypatch):
    log_epoch = WandB.log_epoch

    def log_and_stop(self, stage, epoch, metrics):
        log_epoch(self, stage, epoch, metrics)
        if epoch == 2:
            raise Stopped

    monkeypatch.setattr(WandB, "log_epoch", log_and_stop)
    config = digits({"track": "wandb", "training.checkpoint_every": 0, "training.epochs": 3})
    with pytest.raises(Stopped):
        longtail.train(config, tmp_path / "run")
    monkeypatch.setattr(WandB, "log_epoch", log_epoch)
    sent = Sent(longtail.resume(tmp_path / "run"))
    assert len(sent.ids) == 1
    assert (sent.steps("train"), sent.steps("router")) == ([1, 2, 3], [1, 2])
    assert "results/test/few" in sent.summary


def test_without_a_login_nobody_is_asked(digits_run_copy, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    ours, theirs = pty.openpty()  # a terminal, in which the client would ask
    command = [sys.executable, "-m", "longtail", "track", str(digits_run_copy.folder), "--to", "wandb"]
    done = subprocess.run(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, timeout=120)
    os.close(theirs)
    assert done.returncode == 2
    assert b"longtail: wandb: no login" in os.read(ours, 1 << 16)
