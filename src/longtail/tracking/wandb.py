"""Weights & Biases: a run of the project that WANDB_PROJECT names, or "longtail"."""

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from longtail.tracking import TrackedRun, Tracker, register

START_SECONDS, END_SECONDS = 60, 300
"""How long the start waits for the server, and the end for the upload"""


@register("wandb", needs="wandb")
class WandB(Tracker):
    """Sends metrics, settings and plots with the client of Weights & Biases; WANDB_MODE=offline keeps them in files.

    Metrics have the epoch of their stage as their axis, because stages count their epochs from 1. The epochs that were
    sent are kept in the run folder: offline, nobody else knows them.
    """

    def __init__(self, run: TrackedRun):
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=True,
            init_timeout=START_SECONDS,
            finish_timeout=END_SECONDS,
            finish_timeout_raises=True,
        )
        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError("no login: run 'wandb login', or set WANDB_MODE=offline and use 'wandb sync' later")
        self._run_folder, self._state = run, run.read_state("wandb") or {"id": secrets.token_hex(4), "sent": {}}
        run.write_state("wandb", self._state)
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "longtail"),
            name=run.name,
            id=self._state["id"],
            resume="allow",
            dir=str(run.folder),
            config=dict(run.settings),
            settings=settings,
        )

    def last_epoch(self, stage: str) -> int:
        """See `Tracker`."""
        for prefix in (stage, "val") if stage == "train" else (stage,):
            self._run.define_metric(f"{prefix}/*", step_metric=f"{stage}/epoch")
        return int(self._state["sent"].get(stage, 0))

    def log_epoch(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log({**metrics, f"{stage}/epoch": epoch})
        self._state["sent"][stage] = epoch
        self._run_folder.write_state("wandb", self._state)

    def log_results(self, epoch: int, metrics: Mapping[str, float], plots: Mapping[str, Path]) -> None:
        """See `Tracker`."""
        self._run.summary.update(dict(metrics))  # the same again changes nothing
        self._run.log({f"plots/{name}": self._image(str(path)) for name, path in plots.items()})

    def close(self, is_complete: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if is_complete else 1)
