"""Two processes do what one does: gradients, tests, whole runs; and when one of them dies, so does the other."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import layouts, together
from safetensors.torch import load_file

import longtail
from longtail.config.recipes import load_recipe
from longtail.runtime.device import Runtime
from longtail.runtime.distributed import Group
from longtail.training.loop import fit

SCRIPT = Path(together.__file__)
SOURCE = Path(longtail.__file__).parent.parent


def torchrun(*arguments: str, timeout: float = 240) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments]
    path = os.pathsep.join([str(SOURCE), str(SCRIPT.parent)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment)


def of_both(what: str, folder: Path) -> list[list[torch.Tensor]]:
    done = torchrun(str(SCRIPT), what, str(folder))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{what}-{rank}.pt", weights_only=True) for rank in range(2)]


def test_gradients_are_those_of_one_process(tmp_path):
    alone = together.gradients()
    for ours in of_both("gradients", tmp_path):
        assert len(ours) == len(alone) == 2 * 4 + 1
        for mine, expected in zip(ours, alone, strict=True):
            # The last ones are the epochs' losses, which are kept in float32.
            assert (mine - expected).norm() <= (1e-9 if mine.dtype == torch.float64 else 1e-6) * expected.norm()


def test_accumulated_gradients_are_those_of_one_process(tmp_path):
    alone = together.gradients()
    for ours in (*of_both("accumulated", tmp_path), together.gradients(accumulation=3)):
        for mine, expected in zip(ours, alone, strict=True):
            # The last ones are the epochs' losses, which are kept in float32.
            assert (mine - expected).norm() <= (1e-9 if mine.dtype == torch.float64 else 1e-6) * expected.norm()


def test_tests_and_frozen_outputs_are_those_of_one_process(tmp_path):
    alone = together.answered()
    for ours in of_both("answered", tmp_path):
        assert len(ours) == len(alone)
        assert all(torch.equal(mine, expected) for mine, expected in zip(ours, alone, strict=True))


def test_all_stop_where_one_is_asked_to(tmp_path):
    """Each looks at its own batches, and none may leave the others waiting for what it would have sent."""
    assert of_both("asked", tmp_path) == [[torch.tensor(1)]] * 2


@pytest.mark.parametrize(
    ("on_gpu", "together", "left"),
    [(False, True, "group"), (False, False, "group"), (True, True, "group"), (True, False, 1)],
)
def test_leaving_the_group(monkeypatch, on_gpu, together, left):
    """With NCCL, whoever leaves while the others stay would wait for them."""
    done = []
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: done.append("group"))
    monkeypatch.setattr("os._exit", lambda code: done.append(code))
    monkeypatch.setattr(longtail.runtime.distributed._parting, "together", together)
    longtail.runtime.distributed._part(on_gpu)
    assert done[0] == left


def settings(**changes: object) -> list[str]:
    given = {"training.epochs": 2, "router.epochs": 3, "device": "cpu", "training.validate_every": 1, **changes}
    return [word for name, value in given.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """All stages by two processes."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    done = torchrun("-m", "longtail", "train", "--output", str(folder), *settings())
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes") == 1
    assert "Traceback" not in done.stderr
    return folder


def test_a_run_of_two_is_a_run(run):
    assert {path.name for path in run.iterdir()} == {
        "config.yaml", "metrics.jsonl", "model.safetensors", "results.json", "environment.json", "report.md", "plots",
        "router.json", ".lock",
    }  # fmt: skip
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in history] == [1, 2]
    assert all("val_balanced" in record for record in history)
    assert json.loads((run / "environment.json").read_text())["processes"] == 2
    # One process sees the same in it.
    results = json.loads((run / "results.json").read_text())
    longtail.evaluate(run, device="cpu")
    again = json.loads((run / "results.json").read_text())
    for part in ("val", "test"):
        for values in (results, again):
            values[part]["routing"].pop("images_per_second")
    assert results == again


def test_two_processes_test_as_one(run):
    one = json.loads((run / "results.json").read_text())
    done = torchrun("-m", "longtail", "evaluate", str(run))
    assert done.returncode == 0, done.stderr
    two = json.loads((run / "results.json").read_text())
    for part in ("val", "test"):
        for values in (one, two):
            values[part]["routing"].pop("images_per_second", None)
    assert one == two


def test_classifiers_of_two_are_those_of_one(run, tmp_path):
    """But for rounding: gradients are averages of averages. The router that is trained after them is there."""
    made = []
    for name, start in (("one", [sys.executable, "-m", "longtail"]), ("two", None)):
        folder = shutil.copytree(run, tmp_path / name)
        words = [
            "classifier",
            str(folder),
            "--device",
            "cpu",
            "--classifier.method",
            "retrain",
            "--classifier.epochs=5",
        ]
        done = torchrun("-m", "longtail", *words) if start is None else subprocess.run([*start, *words], timeout=240)
        assert done.returncode == 0
        made.append(load_file(folder / "model.safetensors"))
    before = load_file(run / "model.safetensors")
    for name, tensor in made[0].items():
        torch.testing.assert_close(tensor, made[1][name], rtol=1e-4, atol=1e-4)
        if name.split(".")[0] not in ("heads", "router"):
            assert torch.equal(tensor, before[name])
    assert not torch.equal(made[1]["heads.0.weight"], before["heads.0.weight"])
    assert "router.output.0.weight" in made[1]


def test_two_processes_resume_as_if_nothing_had_been(run, tmp_path):
    """Killed in the middle of an epoch, both of them; then the same command again."""
    folder = tmp_path / "run"
    command = ["-m", "longtail", "train", "--output", str(folder), *settings(**{"training.checkpoint_every": 0})]
    stopping = "import longtail.training.checkpoint as c, os, signal, sys, runpy\n" \
        "save = c.Checkpoint.save\n" \
        "def killed(self, state):\n" \
        "    save(self, state)\n" \
        "    if (state.position.epoch, state.position.step) == (2, 2): os.kill(os.getpid(), signal.SIGKILL)\n" \
        "c.Checkpoint.save = killed\n" \
        "sys.argv[:] = sys.argv[1:]\n" \
        "from longtail.cli import main\n" \
        "sys.exit(main(sys.argv))\n"  # fmt: skip
    (tmp_path / "stopping.py").write_text(stopping)
    done = torchrun(str(tmp_path / "stopping.py"), *command[2:])
    assert done.returncode != 0
    assert (folder / "checkpoint-experts.safetensors").exists()
    done = torchrun(*command)
    assert done.returncode == 0, done.stderr
    assert "Going on in epoch 2 of 2" in done.stdout
    first, second = (load_file(where / "model.safetensors") for where in (run, folder))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("fails everywhere", "longtail: everything is wrong"),
        ("fails in one", "longtail: process 1 has bad luck"),
        ("is killed", "longtail: process 0 of 2 lost touch with another one"),
    ],
)
def test_one_dies_all_die(tmp_path, what, says):
    start = time.monotonic()
    done = torchrun(str(SCRIPT), what, str(tmp_path), timeout=90)
    assert time.monotonic() - start < 60  # not PATIENCE
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("longtail:")]
    assert line.startswith(says)


def test_what_is_wrong_is_told_once(tmp_path):
    done = torchrun("-m", "longtail", "train", "--output", str(tmp_path / "run"), *settings(**{"data.root": "x"}),
                    "--data.name", "folder")  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("longtail: data.root 'x' is not a folder") == 1
    assert not (tmp_path / "run").exists()


def test_batches_too_small_to_share(tmp_path):
    done = torchrun(
        "-m", "longtail", "train", "--output", str(tmp_path / "run"), *settings(**{"training.batch_size": 3})
    )
    assert done.stderr.count("longtail: training.batch_size is 3 for 383 images; 2 processes share every batch") == 1


def test_settings_of_the_fixture_are_of_a_recipe():
    assert load_recipe("digits-lt-ride", {"training.validate_every": 1}).data.val_spare > 0


def test_pictures_are_shared_and_bad_ones_skipped_alike(tmp_path):
    """Decoded by workers of both processes; what one of them finds not to decode, both leave out."""
    photos = layouts.write_folder(tmp_path / "photos", counts=(14, 9, 7))
    (photos / "class 1" / "3.jpg").write_bytes(b"no picture")
    given = {
        "data.name": "folder", "data.root": photos, "data.image_size": 32, "data.imbalance": "none",
        "data.cache_gib": 0, "data.workers": 1, "data.on_corrupt_image": "skip", "data.max_corrupt_images": 0.1,
        "augmentation.crop": "resized", "training.batch_size": 8, "training.validate_every": 0,
        "router.max_accuracy_drop": "null", "data.val_spare": 0,
    }  # fmt: skip
    folder = tmp_path / "run"
    done = torchrun("-m", "longtail", "train", "--output", str(folder), *settings(**given))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 image does not decode: skipped") == 1
    assert (folder / "skipped_images.txt").read_text().startswith("class 1/3.jpg\t")
    assert sum(json.loads((folder / "results.json").read_text())["class_counts"]) in (23, 24)
    longtail.evaluate(folder, device="cpu")  # one process takes the same images for its own


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_gradients_are_sent_once_a_step(parts):
    """Those of the parts but the last only add up: nothing is sent for them."""
    kept = []

    class Recording(Group):
        def no_sync(self, task):
            kept.append(task)
            return super().no_sync(task)

    runtime = Runtime(together.CPU, group=Recording())
    task = together.TrainExperts(together.network("resnet20"), together.RIDELoss(together.COUNTS))
    images = together.loader(runtime.group, shuffle=True)
    steps = len(images)
    optimizer = torch.optim.SGD(task.parameters(), 0.1)
    list(fit(task, images, optimizer, lambda epoch: 1e-3, 1, accumulation=parts, runtime=runtime))
    assert len(kept) == (parts - 1) * steps
