"""Packages import only from lower floors, and importing longtail is fast."""

import ast
import re
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType

import pytest

import longtail

SOURCE = Path(longtail.__file__).parent

# From the top floor to the ground floor
FLOORS = [
    ["cli", "__main__"],
    ["api", "folder_settings", "inference"],
    ["training", "experiments"],
    ["evaluation", "reports", "interop"],
    ["runs"],
    ["data"],
    ["losses", "models"],
    ["config", "runtime", "tracking"],
    ["utils"],
]
MODULES = [path for path in sorted(SOURCE.rglob("*.py")) if path != SOURCE / "__init__.py"]


def name(path):
    return str(path.relative_to(SOURCE))


def package(module):
    """Returns the package or top-level module of a path or a dotted name below longtail."""
    return module.relative_to(SOURCE).with_suffix("").parts[0] if isinstance(module, Path) else module.split(".")[0]


def floor(module):
    return next(number for number, packages in enumerate(FLOORS) if package(module) in packages)


def imports(path):
    """Returns what a file imports from longtail, anywhere: pairs of a module, relative to longtail, and a name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "longtail":
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("longtail."):
            found |= {(node.module.removeprefix("longtail."), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {(alias.name.removeprefix("longtail."), "") for alias in node.names if "longtail." in alias.name}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_down(path):
    for module, _ in imports(path):
        assert floor(module) >= floor(path), f"{name(path)} imports {module}, which is on a higher floor"


def test_packages_do_not_import_each_other_in_a_circle():
    graph = {package(path): set() for path in MODULES}
    for path in MODULES:
        graph[package(path)] |= {package(module) for module, _ in imports(path)} - {package(path)}
    assert list(TopologicalSorter(graph).static_order())


def test_every_package_has_a_floor_and_few_files_are_beside_the_packages():
    assert {package(path) for path in MODULES} == {package for packages in FLOORS for package in packages}
    assert len(list(SOURCE.glob("*.py*"))) <= 8
    assert not [path for path in SOURCE.rglob("build") if path.is_dir()]


@pytest.mark.parametrize("path", [path for path in MODULES if floor(path) > floor("runs")], ids=name)
def test_few_modules_see_the_settings(path):
    """Below runs, only `build.py` files and data sources see settings, and only their sections."""
    schema = {imported for module, imported in imports(path) if module == "config.schema"}
    if package(path) != "config":
        assert "Config" not in schema
        assert not schema or path.name == "build.py" or path.is_relative_to(SOURCE / "data" / "sources")


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["train", "--help"], ["train", "--modle.scale", "3"], ["recipes"]]
)
def test_help_and_errors_do_not_import_torch(arguments):
    code = (
        "import sys, longtail\nfrom longtail.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'timm', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_exist_and_are_documented():
    assert {"train", "load_recipe", "Config", "losses", "data", "flops"} <= set(longtail.__all__)
    pages = "\n".join(path.read_text() for path in (Path(__file__).parents[1] / "docs" / "api").glob("*.md"))
    for public in longtail.__all__:
        item = getattr(longtail, public)
        assert item.__doc__
        named = rf"\b{item.__name__}\b" if isinstance(item, ModuleType) else rf"^\.\. auto\w+:: {public}$"
        assert re.search(named, pages, re.MULTILINE), f"docs/api does not have longtail.{public}"
    with pytest.raises(AttributeError, match="nothing"):
        longtail.nothing  # noqa: B018


@pytest.mark.parametrize("old", longtail._RENAMED)
def test_renamed_names_still_work(old):
    with pytest.warns(DeprecationWarning, match=longtail._RENAMED[old]):
        assert getattr(longtail, old) is getattr(longtail, longtail._RENAMED[old])
