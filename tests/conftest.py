"""What all tests share. Fixtures for short runs, made once by each worker of pytest-xdist:

- ``digits_run``: all stages (experts, router, threshold, evaluation), with report and plots. Do not change it.
- ``digits_run_copy``: a copy of ``digits_run`` for one test, to change.
- ``experts_run``: experts without a router and without validation images. Do not change it.
- ``experts_run_copy``: a copy of ``experts_run`` for one test, to change.
- ``single_expert_run``: one expert, one epoch. Do not change it.
- ``no_plots``: runs of this test write neither report nor plots, and measure the speed of routing only briefly.

Their settings are those of `helpers.runs.digits`: 2 epochs each for the experts and the router.
"""

import os
import shutil

import pytest
import torch
from helpers.runs import EXPERTS_ONLY, digits, skip_reports, train_without_reports

# The tests' tensors are tiny: more threads gain nothing, and on a busy machine they wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of processes that the tests start


def pytest_collection_modifyitems(items):
    # The longest ones first, so that no worker waits for another at the end.
    items.sort(key=lambda item: "test_every_write" not in item.nodeid)


@pytest.fixture
def no_plots(monkeypatch):
    """Skips report, plots and long speed measurements, which take most of the time of a short run."""
    skip_reports(monkeypatch.setattr)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A run of all stages, with report and plots. Do not change it."""
    import longtail

    return longtail.train(digits(), tmp_path_factory.mktemp("runs") / "digits")


@pytest.fixture
def digits_run_copy(digits_run, tmp_path):
    """A copy of ``digits_run``, to change."""
    return _copy(digits_run, tmp_path)


@pytest.fixture(scope="session")
def experts_run(tmp_path_factory):
    """A run without router and validation images; it has no report and no plots. Do not change it."""
    return train_without_reports(digits(EXPERTS_ONLY), tmp_path_factory.mktemp("runs") / "experts")


@pytest.fixture
def experts_run_copy(experts_run, tmp_path):
    """A copy of ``experts_run``, to change."""
    return _copy(experts_run, tmp_path)


@pytest.fixture(scope="session")
def single_expert_run(tmp_path_factory):
    """A run with one expert and one epoch; it has no report and no plots. Do not change it."""
    config = digits({"training.epochs": 1}, "digits-lt-ce")
    return train_without_reports(config, tmp_path_factory.mktemp("runs") / "single")


def _copy(run, tmp_path):
    import longtail

    return longtail.Run(shutil.copytree(run.folder, tmp_path / "copy"))
