"""The small part of the golden values that the repository keeps."""

import json

import numpy as np
import pytest
from helpers import golden
from helpers.golden.extract import KEPT_ARRAYS, KEPT_TABLES


def test_no_larger_than_a_megabyte():
    assert sum((golden.SMALL / name).stat().st_size for name in (*KEPT_ARRAYS, *KEPT_TABLES)) < 1e6


def test_every_loss_case_is_kept():
    cases = json.loads((golden.SMALL / "losses/ride_losses.json").read_text())["cases"]
    with np.load(golden.SMALL / "losses/ride_losses.npz") as file:
        gradients = {name.removesuffix("/grad") for name in file.files if name.endswith("/grad")}
        assert {"expert_logits", "targets", "cls_num_list"} <= set(file.files)
    assert gradients >= {name for name in cases if name.startswith(("ride/", "ldam/", "ce/"))}


@pytest.mark.skipif(not golden.FULL.is_dir(), reason=f"{golden.FULL} is absent")
@pytest.mark.parametrize("name", KEPT_ARRAYS)
def test_arrays_equal_those_of_the_full_set(name):
    with np.load(golden.SMALL / name) as small, np.load(golden.FULL / name) as full:
        assert small.files
        for array in small.files:
            assert small[array].dtype == full[array].dtype
            np.testing.assert_array_equal(small[array], full[array], strict=True)


@pytest.mark.skipif(not golden.FULL.is_dir(), reason=f"{golden.FULL} is absent")
@pytest.mark.parametrize("name", KEPT_TABLES)
def test_tables_equal_those_of_the_full_set(name):
    small, full = (json.loads((root / name).read_text()) for root in (golden.SMALL, golden.FULL))
    assert small
    assert small == ({key: full[key] for key in small} if isinstance(small, dict) else full)
