"""What holds for all tests."""

import pytest
import torch

# The tests' tensors are tiny: more threads gain nothing, and on a busy machine they wait for each other.
torch.set_num_threads(1)


@pytest.fixture
def no_plots(monkeypatch):
    """They, and measuring speed, take most of the time of a short run, and say nothing of the model."""
    monkeypatch.setattr("longtail.evaluation.evaluator.write_report", lambda *arguments, **options: None)
    monkeypatch.setattr("longtail.evaluation.evaluator.SPEED_SECONDS", 0.01)
