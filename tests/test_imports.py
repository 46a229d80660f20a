"""The house's order: imports go down only, and help comes without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import longtail

SOURCE = Path(longtail.__file__).parent

# From the top floor to the ground; a module may import from floors below its own, and from its own floor.
FLOORS = [
    ["cli", "__main__"],
    ["pipeline", "convert", "experiments"],
    ["shifted"],
    ["teachers", "testing"],
    ["stages"],
    ["build", "prediction", "report", "flops_table", "plots", "run"],
    ["label_shift_report"],
    ["evaluation", "training", "progress", "frozen", "test_time"],
    ["tasks", "checkpoint", "model_file", "flops", "tradeoff", "speed", "routing_report"],
    ["training_state", "runtime"],
    ["data", "distribution", "models"],
    ["losses", "metrics", "settings", "seeds"],
    ["config"],
    ["yaml_file"],
    ["schedules", "errors", "ensembles", "signals", "processors", "tensor_file", "wording"],
]
# The long tail's own arithmetic (counts, shot groups) stands below everything that uses it.
GROUND = {"data.longtail"}
MODULES = sorted(SOURCE.rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def floor(module: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if module.split(".")[0] in names)


def imported(path: Path) -> set[str]:
    """Modules of the package that a file imports, wherever in the file; relative to the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "longtail":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {node.module} if node.module != "longtail" else set(names)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("longtail.")}
    return {name.removeprefix("longtail.") for name in found}


def test_every_module_has_a_floor():
    assert len(MODULES) > 20
    for path in MODULES:
        if path.name != "__init__.py":
            floor(module_name(path))


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=module_name)
def test_imports_go_down(path):
    mine = module_name(path)
    for other in imported(path):
        if other not in GROUND:
            assert floor(other) >= floor(mine), f"{mine} imports {other}, which stands above it"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__init__.py"], ids=module_name)
def test_only_the_upper_floors_know_the_config(path):
    allowed = {
        "config",
        "settings",
        "build",
        "run",
        "pipeline",
        "stages",
        "teachers",
        "testing",
        "shifted",
        "evaluation",
        "convert",
        "experiments",
        "cli",
    }
    if module_name(path).split(".")[0] not in allowed:
        assert "config" not in imported(path)


@pytest.mark.parametrize("command", ["--help", "recipes"])
def test_help_imports_no_torch(command):
    code = (
        "import sys\nfrom longtail.cli import main\n"
        f"try: main([{command!r}])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "longtail" in done.stdout


def test_public_names_exist_and_are_listed():
    assert sorted(longtail.__all__) == sorted(longtail._HOMES)
    for name in longtail.__all__:
        assert getattr(longtail, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        longtail.nothing  # noqa: B018
