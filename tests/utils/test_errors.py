"""Messages of errors."""

import pytest

from longtail.utils.errors import InputError, did_you_mean, raise_all


def test_one_line_for_each_problem():
    raise_all([])
    with pytest.raises(InputError) as error:
        raise_all(["a.jpg", "two\nlines.jpg"])
    assert str(error.value).splitlines() == ["a.jpg", r"two\nlines.jpg"]


def test_many_problems_are_shortened():
    with pytest.raises(InputError) as error:
        raise_all([f"{number}.jpg" for number in range(2000)], max_lines=3)
    assert str(error.value).splitlines() == ["0.jpg", "1.jpg", "and 1,998 more"]


def test_did_you_mean():
    assert "'cifar100'" in did_you_mean("cifar-100", ["cifar100", "folder"])
    assert did_you_mean("x", ["cifar100"]) == ""
