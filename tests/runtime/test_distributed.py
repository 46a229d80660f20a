"""Two processes compute what one computes: gradients, outputs, runs. If one of them ends, the other ends too."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import distributed_worker, jobs, layouts
from helpers.runs import are_equal, environment, untimed_results, weights

import longtail
from longtail.losses import RIDELoss
from longtail.runtime import distributed
from longtail.runtime.device import Runtime
from longtail.runtime.distributed import Group
from longtail.training.loop import LoopOptions, fit
from longtail.training.tasks import TrainExperts

SCRIPT = Path(distributed_worker.__file__)


def torchrun(*arguments: str | Path, timeout: float = 240) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(SCRIPT.parent.parent),
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[str, list[list[torch.Tensor]]]:
    """The results of both processes for each action of the script, in a single job."""
    actions, folder = ["gradients", "accumulated", "outputs", "computed", "stop"], tmp_path_factory.mktemp("results")
    done = torchrun(SCRIPT, ",".join(actions), folder)
    assert done.returncode == 0, done.stderr
    return {
        action: [torch.load(folder / f"{action}-{rank}.pt", weights_only=True) for rank in range(2)]
        for action in actions
    }


def assert_close(gradients, expected):
    assert len(gradients) == len(expected) == 2 * 4 + 1
    for values, right in zip(gradients, expected, strict=True):
        # The last tensor holds the losses of the epochs, which are float32.
        assert (values - right).norm() <= (1e-9 if values.dtype == torch.float64 else 1e-6) * right.norm()


@pytest.mark.slow
def test_gradients_are_those_of_one_process(results):
    expected = distributed_worker.gradients()
    for gradients in (*results["gradients"], *results["accumulated"], distributed_worker.gradients(accumulation=3)):
        assert_close(gradients, expected)


@pytest.mark.slow
def test_outputs_are_those_of_one_process(results):
    expected = distributed_worker.outputs()
    for tensors in results["outputs"]:
        assert len(tensors) == len(expected)
        assert all(torch.equal(values, right) for values, right in zip(tensors, expected, strict=True))


@pytest.mark.slow
def test_computed_outputs_are_those_of_one_process(results):
    expected = distributed_worker.computed_outputs()
    for tensors in results["computed"]:
        torch.testing.assert_close(tensors, expected, rtol=1e-4, atol=1e-4)  # shares of a batch round otherwise


@pytest.mark.slow
def test_all_processes_stop_if_one_gets_a_signal(results):
    """Otherwise the other process would wait forever."""
    assert results["stop"] == [[torch.tensor(1)]] * 2


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_gradients_are_averaged_once_a_step(parts):
    """Gradients of all parts of a batch but the last are summed locally."""
    tasks = []

    class RecordingGroup(Group):
        def no_sync(self, task):
            tasks.append(task)
            return super().no_sync(task)

    runtime = Runtime(distributed_worker.CPU, group=RecordingGroup())
    task = TrainExperts(distributed_worker.network("resnet20"), RIDELoss(distributed_worker.COUNTS))
    images = distributed_worker.train_loader(runtime.group)
    optimizer = torch.optim.SGD(task.parameters(), 0.1)
    list(fit(task, images, optimizer, lambda epoch: 1e-3, 1, LoopOptions(parts, runtime=runtime)))
    assert len(tasks) == (parts - 1) * len(images)


@pytest.mark.parametrize(
    ("on_gpu", "together", "expected"),
    [(False, True, "destroyed"), (False, False, "destroyed"), (True, True, "destroyed"), (True, False, 1)],
)
def test_a_process_that_ends_early_does_not_wait_for_the_others(monkeypatch, on_gpu, together, expected):
    """With NCCL, leaving the group would wait."""
    calls = []
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: calls.append("destroyed"))
    monkeypatch.setattr("os._exit", lambda code: calls.append(code))
    monkeypatch.setattr(distributed._exit, "together", together)
    distributed._leave(on_gpu)
    assert calls[0] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "start"),
    [
        ("fail everywhere", "longtail: error of all processes"),
        ("fail in one", "longtail: error of process 1"),
        ("killed", "longtail: process 0 of 2 lost the connection"),
        ("silent", "longtail: process 0 of 2 lost the connection"),
    ],
)
def test_an_error_in_one_process_ends_all(tmp_path, action, start):
    """It is reported once, and at once, not after `TIMEOUT`."""
    begin = time.monotonic()
    done = torchrun(SCRIPT, action, tmp_path, timeout=90)
    assert time.monotonic() - begin < 60
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("longtail:")]
    assert line.startswith(start)


# ---- runs ----


def settings(**changes: object) -> list[str]:
    values = {"training.epochs": 2, "router.epochs": 3, "device": "cpu", "training.validate_every": 1}
    values |= {"training.ema": 0.9, **changes}
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose stages were all trained by two processes."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    done = torchrun("-m", "longtail", "train", "--output", folder, *settings())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes") == 1
    assert "Traceback" not in done.stderr
    return folder


@pytest.mark.slow
def test_two_processes_write_one_run(run, tmp_path):
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.jsonl", "model.safetensors", "results.json", "environment.json", "report.md", "plots",
        "router.json", ".lock", "report.html", "outputs.safetensors",
    }  # fmt: skip
    history = longtail.Run(run).history()
    assert [record["epoch"] for record in history] == [1, 2]
    assert all("val_balanced" in record for record in history)
    assert longtail.Run(run).environment()["processes"] == 2
    copy = shutil.copytree(run, tmp_path / "copy")
    longtail.evaluate(copy)
    assert untimed_results(copy) == untimed_results(run)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "results.json").unlink()
    codes, _, err = jobs.run_as_two(["evaluate", copy], tmp_path)
    assert codes == [0, 0], err
    assert untimed_results(copy) == untimed_results(run)


@pytest.mark.slow
def test_two_processes_retrain_classifiers_as_one(run, tmp_path):
    """Except for rounding: gradients are averages of averages. A new router is trained too."""
    command = ["--device", "cpu", "--classifier.method", "retrain", "--classifier.epochs", "5"]
    one, two = (shutil.copytree(run, tmp_path / name) for name in ("one", "two"))
    jobs.run(["classifier", one, *command], tmp_path / "job")
    codes, _, err = jobs.run_as_two(["classifier", two, *command], tmp_path)
    assert codes == [0, 0], err
    before, after, expected = weights(run), weights(two), weights(one)
    for name, tensor in expected.items():
        torch.testing.assert_close(tensor, after[name], rtol=1e-4, atol=1e-4)
        if name.split(".")[0] not in ("heads", "router"):
            assert torch.equal(tensor, before[name])
    assert not torch.equal(after["heads.0.weight"], before["heads.0.weight"])
    assert "router.output.0.weight" in after


@pytest.mark.slow
def test_two_processes_train_on_cached_outputs_as_one(tmp_path):
    """Except for rounding. Both compute and validate a part; the best epoch is the result."""
    changes = {"training.trained_parts": "experts", "training.freeze_batch_norms": True, "training.views": 3}
    changes |= {"training.epochs": 6, "training.patience": 1, "training.learning_rate": 0.01, "router.train": False}
    command = ["train", *settings(**changes)]
    one, two = tmp_path / "one", tmp_path / "two"
    jobs.run([*command, "--output", one], tmp_path / "job")
    codes, _, err = jobs.run_as_two([*command, "--output", two], tmp_path)
    assert codes == [0, 0], err
    torch.testing.assert_close(weights(two), weights(one), rtol=1e-4, atol=1e-5)
    assert longtail.Run(one).results()["epoch"] == longtail.Run(two).results()["epoch"]
    assert not (two / "frozen-views").exists()


@pytest.mark.slow
def test_two_killed_processes_resume_exactly(run, tmp_path):
    """Both are killed in the middle of an epoch; then the same command runs again."""
    folder = tmp_path / "run"
    command = ["train", "--output", folder, *settings(**{"training.checkpoint_every": 0})]
    codes, _, _ = jobs.run_as_two(command, tmp_path, distributed_worker.die_in_second_epoch)
    assert -signal.SIGKILL in codes
    assert (folder / "checkpoint-experts.safetensors").exists()
    codes, out, err = jobs.run_as_two(command, tmp_path)
    assert codes == [0, 0], err
    assert "epoch 2 of 2 from" in out
    first, second = weights(run), weights(folder)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_a_process_that_does_not_answer_ends_a_training(run, tmp_path):
    """The other one says so after `TIMEOUT`; the same command resumes exactly."""
    folder = tmp_path / "run"
    command = ["train", "--output", folder, *settings(**{"training.checkpoint_every": 0})]
    codes, _, err = jobs.run_as_two(command, tmp_path, distributed_worker.freeze_in_second_epoch)
    assert codes == [2, -signal.SIGKILL]
    (line,) = [line for line in err.splitlines() if line.startswith("longtail:")]
    assert "process 0 of 2 lost the connection" in line
    assert "did not answer" in line
    codes, out, err = jobs.run_as_two(command, tmp_path)
    assert codes == [0, 0], err
    assert "epoch 2 of 2 from" in out
    assert are_equal(weights(folder), weights(run))


@pytest.mark.slow
def test_the_search_for_copies_is_waited_for(tmp_path):
    changes = {
        "training.epochs": 1,
        "training.validate_every": 0,
        "router.train": False,
        "router.max_accuracy_drop": "null",
    }
    command = ["train", "--output", tmp_path / "run", *settings(**changes)]
    codes, _, err = jobs.run_as_two(command, tmp_path, distributed_worker.find_copies_slowly)
    assert codes == [0, 0], err


@pytest.mark.slow
def test_input_errors_are_reported_once(tmp_path):
    wrong = {"data.root": "x", "data.name": "folder"}
    codes, _, err = jobs.run_as_two(["train", "--output", tmp_path / "run", *settings(**wrong)], tmp_path)
    assert codes == [2, 2]
    assert err.count("longtail: data.root") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_batch_must_be_large_enough_to_share(tmp_path):
    command = ["train", "--output", tmp_path / "run", *settings(**{"training.batch_size": 3})]
    _, _, err = jobs.run_as_two(command, tmp_path)
    assert err.count("longtail: training.batch_size is 3 for 383 images; 2 processes") == 1


@pytest.mark.slow
def test_two_processes_skip_the_same_corrupt_images(tmp_path):
    """Workers of both processes decode the images; the first process finds those that do not decode."""
    photos = layouts.write_folder(tmp_path / "photos", counts=(14, 9, 7))
    (photos / "class 1" / "3.jpg").write_bytes(b"no image")
    changes = {
        "data.name": "folder", "data.root": photos, "data.image_size": 32, "data.imbalance": "none",
        "data.cache_gib": 0, "data.workers": 1, "data.on_corrupt_image": "skip", "data.max_corrupt_images": 0.1,
        "augmentation.crop": "resized", "training.batch_size": 8, "training.validate_every": 0,
        "router.max_accuracy_drop": "null", "data.val_spare": 0,
    }  # fmt: skip
    folder = tmp_path / "run"
    codes, out, err = jobs.run_as_two(["train", "--output", folder, *settings(**changes)], tmp_path)
    assert codes == [0, 0], err
    assert out.count("1 image that does not decode") == 1
    assert (folder / "skipped_images.txt").read_text().startswith("class 1/3.jpg\t")
    assert sum(json.loads((folder / "results.json").read_text())["class_counts"]) in (23, 24)
    longtail.evaluate(folder)  # one process has the same images
