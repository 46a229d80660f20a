"""How common classes are, from a file."""

import json

import numpy as np
import pytest

from longtail.evaluation.label_shift.priors import read_prior
from longtail.utils.errors import InputError

NAMES = ("cat", "dog", "emu")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", "[1, 2.5, 0]"),
        ("object.json", '{"dog": 2.5, "emu": 0, "cat": 1}'),
        ("lines.txt", "1\n2.5\n\n0\n"),
        ("words.txt", " 1 25e-1\t0"),
        ("json.txt", "\n [1, 2.5, 0]"),
    ],
)
def test_numbers_become_shares(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    prior = read_prior(tmp_path / name, NAMES)
    assert prior.dtype == np.float64
    assert prior.tolist() == pytest.approx([1 / 3.5, 2.5 / 3.5, 0])


def test_uniform_and_large_numbers(tmp_path):
    assert read_prior("uniform", NAMES).tolist() == pytest.approx([1 / 3] * 3)
    (tmp_path / "large.json").write_text(json.dumps([1e308] * 3))
    assert read_prior(tmp_path / "large.json", NAMES).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[1, 2]", "2 numbers for 3 classes"),
        ("1\n2\nthree\n", "prior.txt:3: 'three' where there must be a number"),
        ("1\n2\n-3\n", "-3.0 for class 'emu'; it must be a number, 0 or more"),
        ("1\nnan\n3\n", "nan for class 'dog'"),
        ("1\ninf\n3\n", "inf for class 'dog'"),
        ("[1, NaN, 3]", "nan for class 'dog'"),
        ("[0, 0, 0]", "0 for every class"),
        ("", "0 numbers for 3 classes"),
        ("[1, 2", "not valid JSON"),
        ('[1, "2", 3]', '"2" where there must be a number'),
        ("[1, true, 3]", "true where there must be a number"),
        ("[1, [2], 3]", "where there must be a number"),
        (f"[1, {10**400}, 3]", "too large"),
        ('{"cat": 1, "dgo": 2, "emu": 3}', "no class is called 'dgo'; did you mean 'dog'"),
        ('{"cat": 1, "dog": 2}', "no number for 1 of 3 classes; first 'emu'"),
    ],
)
def test_what_is_no_prior_is_named_in_one_line(tmp_path, content, says):
    (tmp_path / "prior.txt").write_text(content)
    with pytest.raises(InputError) as refused:
        read_prior(tmp_path / "prior.txt", NAMES)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match="'absent': no such file; it must be a file, or 'uniform'"):
        read_prior("absent", NAMES)
    with pytest.raises(InputError, match="cannot be read"):
        read_prior(tmp_path, NAMES)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe1")
    with pytest.raises(InputError, match="cannot be read"):
        read_prior(tmp_path / "bytes", NAMES)
