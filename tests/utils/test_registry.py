import sys
from importlib import import_module

import pytest

from longtail.utils.errors import InputError


@pytest.fixture
def animals(tmp_path, monkeypatch):
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals/__init__.py").write_text(
        "from longtail.utils.registry import Registry\nREGISTRY = Registry('pet.name', 'animals')\n"
    )
    for name in ("dog", "cat"):
        (tmp_path / f"animals/{name}.py").write_text(
            f"from animals import REGISTRY\nREGISTRY.added['{name}'] = '{name.upper()}'\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("animals")
    for name in [name for name in sys.modules if name.split(".")[0] == "animals"]:
        del sys.modules[name]


def test_modules_are_imported_at_the_first_look(animals):
    assert animals.REGISTRY.added == {}
    assert "animals.cat" not in sys.modules
    assert animals.REGISTRY["cat"] == "CAT"
    assert animals.REGISTRY.names() == ["cat", "dog"]


def test_an_unknown_name_is_an_error(animals):
    with pytest.raises(InputError, match=r"^pet\.name is 'dogg'; it must be one of cat, dog; did you mean 'dog'\?$"):
        animals.REGISTRY["dogg"]
