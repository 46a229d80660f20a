"""MLflow, with a database in a temporary folder."""

import pytest
from helpers.runs import digits

import longtail
from longtail.runtime.process import Stopped
from longtail.tracking.mlflow import MLflow

mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty database, and the folder of its files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)


def only_run():
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("longtail").experiment_id])
    return client, run


def steps(client, run, metric):
    return [point.step for point in client.get_metric_history(run.info.run_id, metric)]


@pytest.mark.usefixtures("store")
def test_a_finished_run_is_sent_once_however_often(digits_run_copy):
    run = digits_run_copy
    for _ in range(2):
        longtail.track(run, "mlflow")
    client, sent = only_run()
    assert (sent.info.run_name, sent.info.status) == ("copy", "FINISHED")
    assert sent.data.params["training.epochs"] == "2"
    assert sent.data.params["model.width"] == "narrow"
    results = run.results()["test"]
    for name in ("balanced", "many", "medium", "few"):
        assert sent.data.metrics[f"results/test/{name}"] == results[name]
    assert sent.data.metrics["results/test/routing/relative_cost"] == results["routing"]["relative_cost"]
    losses = [(point.step, point.value) for point in client.get_metric_history(sent.info.run_id, "train/loss")]
    assert losses == [(record["epoch"], record["loss"]) for record in run.history()]
    assert steps(client, sent, "router/loss") == [1, 2]
    assert steps(client, sent, "results/test/few") == [2]
    plots = {file.path for file in client.list_artifacts(sent.info.run_id, "plots")}
    assert plots == {f"plots/{name}.png" for name in run.plots()}


@pytest.mark.usefixtures("store", "no_plots")
def test_a_resumed_run_continues(tmp_path, monkeypatch):
    log_epoch = MLflow.log_epoch

    def log_and_stop(self, stage, epoch, metrics):
        log_epoch(self, stage, epoch, metrics)
        if epoch == 2:
            raise Stopped

    monkeypatch.setattr(MLflow, "log_epoch", log_and_stop)
    config = digits({"track": "mlflow", "training.checkpoint_every": 0, "training.epochs": 3})
    with pytest.raises(Stopped):
        longtail.train(config, tmp_path / "run")
    assert only_run()[1].info.status == "KILLED"
    monkeypatch.setattr(MLflow, "log_epoch", log_epoch)
    longtail.resume(tmp_path / "run")
    client, sent = only_run()
    assert sent.info.status == "FINISHED"
    assert steps(client, sent, "train/loss") == steps(client, sent, "train/accuracy") == [1, 2, 3]
    assert steps(client, sent, "router/loss") == [1, 2]
    assert steps(client, sent, "results/test/few") == [3]


@pytest.mark.usefixtures("store")
def test_a_server_that_does_not_answer(digits_run_copy, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(longtail.InputError, match="mlflow: "):
        longtail.track(digits_run_copy, "mlflow")
