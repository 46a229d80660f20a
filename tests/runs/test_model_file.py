"""Model files with numbers that are not finite are neither written nor read."""

import math

import pytest
import torch
from helpers.runs import EXPERTS_ONLY, digits

import longtail
from longtail.cli import main
from longtail.runs.model_file import load_model_file, save_model
from longtail.utils.errors import InputError
from longtail.utils.files import read_tensors, write_tensors


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_neither_written_nor_read(single_expert_run, tmp_path, number):
    model, metadata = single_expert_run.load_model()
    path = tmp_path / "model.safetensors"
    save_model(path, model, metadata)
    before = path.read_bytes()
    with torch.no_grad():
        model.heads[0].weight[0, 0] = number
    with pytest.raises(InputError, match=r"'heads\.0\.weight' holds NaN or infinite"):
        save_model(path, model, metadata)
    assert path.read_bytes() == before
    tensors, values = read_tensors(path)
    tensors["heads.0.weight"][0, 0] = number
    write_tensors(path, tensors, values)
    with pytest.raises(InputError, match=r"model\.safetensors: 'heads\.0\.weight' holds NaN or infinite"):
        load_model_file(path)
    assert main(["predict", str(path), __file__]) == 2


@pytest.mark.usefixtures("no_plots")
def test_a_training_that_diverges_in_its_last_update(tmp_path, monkeypatch):
    """The losses of all steps are finite; the run keeps the model of the epoch before."""
    step, calls = torch.optim.SGD.step, []

    def diverge(self, *arguments, **options):
        step(self, *arguments, **options)
        calls.append(1)
        if len(calls) == last:
            with torch.no_grad():
                self.param_groups[0]["params"][0][0].fill_(math.inf)

    monkeypatch.setattr(torch.optim.SGD, "step", diverge)
    last = 0
    run = longtail.train(digits(EXPERTS_ONLY | {"training.epochs": 2}, "digits-lt-ce"), tmp_path / "finite")
    last = len(calls)
    calls.clear()
    with pytest.raises(InputError, match=r"model\.safetensors: '.*' holds NaN or infinite"):
        longtail.train(run.config, tmp_path / "run")
    assert longtail.Run(tmp_path / "run").load_model()[1].epoch == 1
