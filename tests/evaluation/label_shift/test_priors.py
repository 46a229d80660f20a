"""Class shares from a file."""

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
        ("marked.json", "\ufeff[1, 2.5, 0]"),
        ("marked.txt", "\ufeff1 2.5 0"),
    ],
)
def test_numbers_become_shares(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    prior = read_prior(tmp_path / name, NAMES)
    assert prior.dtype == np.float64
    assert prior.tolist() == pytest.approx([1 / 3.5, 2.5 / 3.5, 0])


def test_uniform_and_large_numbers(tmp_path):
    assert read_prior("uniform", NAMES).tolist() == pytest.approx([1 / 3] * 3)
    (tmp_path / "large.json").write_text(json.dumps([1e308] * 3))
    assert read_prior(tmp_path / "large.json", NAMES).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ("[1, 2]", "2 .* 3 classes"),
        ("1\n2\nthree\n", "'emu' has three"),
        ("1\n2\n-3\n", "'emu' has -3"),
        ("1\nnan\n3\n", "'dog' has nan"),
        ("1\ninf\n3\n", "'dog' has inf"),
        ("[1, NaN, 3]", "'dog' has nan"),
        ("[0, 0, 0]", "all classes have 0"),
        ("", "0 .* 3 classes"),
        ("[1, 2", "line 1"),
        ('[1, "two", 3]', "'dog' has two"),
        ("[1, [2], 3]", r"'dog' has \[2\]"),
        (f"[1, {10**400}, 3]", "has 1000"),
        ('{"cat": 1, "dgo": 2, "emu": 3}', "'dgo'.*'dog'"),
        ('{"cat": 1, "dog": 2}', "1 .*'emu'"),
    ],
)
def test_invalid_priors_are_named_in_one_line(tmp_path, content, facts):
    (tmp_path / "prior.txt").write_text(content)
    with pytest.raises(InputError, match=facts) as error:
        read_prior(tmp_path / "prior.txt", NAMES)
    assert "prior.txt" in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(InputError, match=r"'absent'.*'uniform'"):
        read_prior("absent", NAMES)
    with pytest.raises(InputError, match=str(tmp_path)):
        read_prior(tmp_path, NAMES)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe1")
    with pytest.raises(InputError, match="bytes"):
        read_prior(tmp_path / "bytes", NAMES)
