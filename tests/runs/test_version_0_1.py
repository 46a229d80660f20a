"""Runs that version 0.1 wrote (tests/golden/runs-0.1) are loaded, evaluated and resumed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import longtail

RUNS = Path(__file__).parents[1] / "golden" / "runs-0.1"


@pytest.fixture
def copied(tmp_path):
    def copy(name):
        return Path(shutil.copytree(RUNS / name, tmp_path / name))

    return copy


def test_model_file_is_loaded():
    model = longtail.load_model(RUNS / "finished" / "model.safetensors")
    assert (model.num_experts, model.num_classes) == (2, 10)
    assert model.router is not None
    weights = load_file(RUNS / "finished" / "model.safetensors")
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_finished_run_is_evaluated(copied):
    folder = copied("finished")
    before = json.loads((folder / "results.json").read_text())["test"]
    result = longtail.evaluate(folder)
    assert result.accuracy == pytest.approx(before["accuracy"], abs=0.01)
    assert result.ece == pytest.approx(before["ece"], abs=0.01)


@pytest.mark.slow
def test_interrupted_run_is_resumed(copied):
    """Stopped after the first step of epoch 3; the other run is the same training without a stop."""
    run = longtail.resume(copied("interrupted"))
    assert run.is_finished
    epochs, expected = run.history(), longtail.Run(RUNS / "finished").history()
    assert [record["epoch"] for record in epochs] == [1, 2, 3, 4]
    # Equal to the bit on the machine where they were made.
    assert [record["loss"] for record in epochs] == pytest.approx([record["loss"] for record in expected], rel=1e-3)
    weights, expected = (load_file(path / "model.safetensors") for path in (run.folder, RUNS / "finished"))
    assert all(torch.allclose(value, expected[name], rtol=1e-2, atol=1e-2) for name, value in weights.items())
