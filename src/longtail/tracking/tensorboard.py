"""TensorBoard: event files in the run folder. ``tensorboard --logdir runs`` shows all runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from longtail.tracking import TrackedRun, Tracker, register

COMPARED = ("accuracy", "balanced", "many", "medium", "few", "ece")
"""Results of the test images in the table of hyper-parameters"""


@register("tensorboard", needs="tensorboard")
class TensorBoard(Tracker):
    """Writes event files with torch's writer.

    Each start writes all epochs anew, in place of the earlier event files, so that a resumed run has no step twice. The
    file begins with a session mark, by which a TensorBoard that is open drops what it has read before.
    """

    def __init__(self, run: TrackedRun):
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        for earlier in run.folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        self._writer = SummaryWriter(str(run.folder), purge_step=0)
        settings = {name: _plain(value) for name, value in run.settings.items()}
        compared = {f"results/test/{name}": 0.0 for name in COMPARED}
        experiment, start, self._end = hparams(settings, compared)  # type: ignore[no-untyped-call]
        for summary in (experiment, start):
            self._write(summary)

    def log_epoch(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._scalars(epoch, metrics)

    def log_results(self, epoch: int, metrics: Mapping[str, float], plots: Mapping[str, Path]) -> None:
        """See `Tracker`."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._scalars(epoch, metrics)
        for name, path in plots.items():
            with Image.open(path) as image:
                width, height = image.size
            picture = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
            self._write(Summary(value=[Summary.Value(tag=f"plots/{name}", image=picture)]), epoch)

    def close(self, is_complete: bool) -> None:
        """See `Tracker`."""
        if is_complete:
            self._write(self._end)
        self._writer.close()

    def _scalars(self, epoch: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        self._writer.flush()

    def _write(self, summary: Any, step: int | None = None) -> None:
        writer = self._writer.file_writer
        assert writer is not None
        writer.add_summary(summary, step)


def _plain(value: Any) -> str | float | bool:
    """A setting as the table of hyper-parameters can hold it."""
    return value if isinstance(value, str | int | float) else json.dumps(value)
