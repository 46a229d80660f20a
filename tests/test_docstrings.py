"""The examples in docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import longtail

PACKAGES = pkgutil.walk_packages(longtail.__path__, "longtail.")
MODULES = [module.name for module in PACKAGES if "__main__" not in module.name]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) >= 9
