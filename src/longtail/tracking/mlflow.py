"""MLflow: a run of the experiment that MLFLOW_EXPERIMENT_NAME names, at MLFLOW_TRACKING_URI."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from longtail.tracking import TrackedRun, Tracker, register

PATIENCE = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Unless the environment says otherwise: by default a server that does not answer is waited for many minutes"""

BATCH = 100
"""Parameters that MLflow takes at once"""

MAX_VALUE = 500
"""Characters of a parameter that every version of MLflow takes"""


@register("mlflow", needs="mlflow")
class MLflow(Tracker):
    """Sends metrics, parameters and plots with MLflow's client, without its global run."""

    def __init__(self, run: TrackedRun):
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        tracking_uri = self._client.tracking_uri
        if (state := run.read_state("mlflow")).get("tracking_uri") == tracking_uri:
            self._id = state["run_id"]
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "longtail")
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment)
        self._id = self._client.create_run(number, run_name=run.name).info.run_id
        run.write_state("mlflow", {"run_id": self._id, "tracking_uri": tracking_uri})
        values = {name: value if isinstance(value, str) else json.dumps(value) for name, value in run.settings.items()}
        parameters = [Param(name, value[:MAX_VALUE]) for name, value in values.items()]
        for first in range(0, len(parameters), BATCH):
            self._client.log_batch(self._id, params=parameters[first : first + BATCH])

    def last_epoch(self, stage: str) -> int:
        """See `Tracker`."""
        return max((metric.step for metric in self._client.get_metric_history(self._id, f"{stage}/loss")), default=0)

    def log_epoch(self, stage: str, epoch: int, metrics: Mapping[str, float]) -> None:
        """See `Tracker`."""
        # The loss comes last: it marks the epoch as complete, see `last_epoch`.
        self._log(epoch, dict(sorted(metrics.items(), key=lambda item: item[0] == f"{stage}/loss")))

    def log_results(self, epoch: int, metrics: Mapping[str, float], plots: Mapping[str, Path]) -> None:
        """See `Tracker`."""
        stored = self._client.get_run(self._id).data.metrics
        self._log(epoch, {name: value for name, value in metrics.items() if stored.get(name) != value})
        for path in plots.values():
            self._client.log_artifact(self._id, str(path), "plots")

    def close(self, is_complete: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self._id, "FINISHED" if is_complete else "KILLED")

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sends metrics in one request, which the server stores as a whole."""
        from mlflow.entities import Metric

        now = round(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(name, value, now, step) for name, value in metrics.items()])
