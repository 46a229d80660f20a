"""Writes the pages that follow from the code: recipes, settings, commands and result tables.

They are written to docs/_generated before Sphinx reads the sources. The pages in docs/ include them.
"""

import ast
import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

import longtail
from longtail.config.recipes import about, flat, list_recipes, load_recipe
from longtail.config.schema import Config
from longtail.data.sources import list_sources
from longtail.losses.base import REGISTRY as LOSSES

DOCS = Path(__file__).parents[1]
GENERATED = DOCS / "_generated"
ACCURACY = DOCS.parent / "benchmarks" / "accuracy"
SOURCE = Path(longtail.__file__).parent

GROUPS = {
    "digits": "Built-in digits",
    "cifar100": "CIFAR-100-LT",
    "cifar10": "CIFAR-10-LT",
    "imagenet-lt": "ImageNet-LT",
    "inaturalist2018": "iNaturalist 2018",
    "places-lt": "Places-LT",
    "folder": "Your own images",
}
"""Heading of the recipes of each data set"""

CHOICES = {"data.name": list_sources, "loss.name": LOSSES.names}
"""Settings whose values register themselves"""

BOUNDS = {"min": "at least", "above": "above", "max": "at most", "below": "below"}


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers the generator with Sphinx."""
    app.connect("builder-inited", lambda app: generate())
    return {"parallel_read_safe": True}


def generate() -> None:
    """Writes all generated pages. Files that do not change keep their time, so that Sphinx does not read them again."""
    pages = {
        "recipes.md": recipes(),
        "settings.md": settings(),
        "commands.md": commands(),
        "files.md": files(),
    }
    for path in sorted(ACCURACY.glob("*.md")):
        if path.name != "README.md":
            pages[f"results-{path.name}"] = tables(path.read_text(encoding="utf-8"))
    GENERATED.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = GENERATED / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def recipes() -> str:
    """All recipes: an overview, then each with what differs from the defaults."""
    out = io.StringIO()
    names = {data: [name for name in list_recipes() if load_recipe(name).data.name == data] for data in _data_names()}
    print("| recipe | what it trains |\n| --- | --- |", file=out)
    for group in names.values():
        for name in group:
            print(f"| [`{name}`](#recipe-{name}) | {_escaped(about(name).description)} |", file=out)
    defaults = flat(dataclasses.asdict(Config()))
    for data, group in names.items():
        print(f"\n## {GROUPS.get(data, data)}", file=out)
        for name in group:
            described = about(name)
            print(f"\n(recipe-{name})=\n### `{name}`\n\n{_escaped(described.description)}\n", file=out)
            print(f"- Expected accuracy (%): {_escaped(described.expected)}", file=out)
            print(f"- Time: {_escaped(described.time)}\n", file=out)
            print("| setting | default | this recipe |\n| --- | --- | --- |", file=out)
            for key, value in flat(dataclasses.asdict(load_recipe(name))).items():
                if key != "name" and value != defaults[key]:
                    print(f"| {{confval}}`{key}` | {_value(defaults[key])} | {_value(value)} |", file=out)
    return out.getvalue()


def _data_names() -> list[str]:
    used = {load_recipe(name).data.name for name in list_recipes()}
    return [name for name in GROUPS if name in used] + sorted(used - set(GROUPS))


def settings() -> str:
    """Every setting with its type, default and description, by section."""
    out = io.StringIO()
    print("## General", file=out)
    _write_settings(out, Config, "")
    for section in dataclasses.fields(Config):
        if dataclasses.is_dataclass(section.default_factory):
            kind: Any = section.default_factory
            print(f"\n(section-{section.name})=\n## `{section.name}`\n\n{_prose(kind.__doc__ or '')}", file=out)
            _write_settings(out, kind, f"{section.name}.")
    return out.getvalue()


def _write_settings(out: io.StringIO, kind: Any, prefix: str) -> None:
    documented = ModuleAnalyzer.for_module(kind.__module__).find_attr_docs()
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default_factory):
            continue
        default = field.default_factory() if callable(field.default_factory) else field.default
        description = "\n".join(documented[kind.__name__, field.name])
        name = f"{prefix}{field.name}"
        hint = Literal[*CHOICES[name]()] if name in CHOICES else hints[field.name]
        bounds = "".join(f", {BOUNDS[bound]} {number}" for bound, number in field.metadata.items())
        print(f"\n```{{confval}} {name}\n:type: {_type(hint)}{bounds}", file=out)
        print(f":default: {_value(default)}\n\n{_prose(description)}\n```", file=out)


def _type(hint: Any) -> str:
    """A type in words, as Markdown."""
    names = {str: "text", int: "integer", float: "number", bool: "`true` or `false`", type(None): "`null`"}
    if hint in names:
        return names[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"list of {_type(arguments[0])}s"
    if origin is tuple:
        return f"{len(arguments)} {_type(arguments[0])}s"
    return " or ".join(map(_type, arguments)) if arguments else f"`{hint}`"


def _value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else value
    return f"`{text}`"


def _prose(docstring: str) -> str:
    return _escaped("\n".join(line.strip() for line in docstring.splitlines()).strip())


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "*_<>[]`$|{}" else c for c in text)


def commands() -> str:
    """The help text of each command."""
    out = io.StringIO()
    for name in _command_names():
        text = _help(name)
        print(f"\n## `longtail {name}`\n\n```text\n{text.partition('settings, each with')[0].strip()}\n```", file=out)
    return out.getvalue()


def _command_names() -> Iterator[str]:
    lines = _help().partition("COMMAND")[2].partition("\n    ")[2].splitlines()
    for line in [f"    {lines[0]}", *lines[1:]]:
        if line.startswith("    ") and not line.startswith("     "):
            yield line.split()[0]


def _help(*command: str) -> str:
    arguments = [sys.executable, "-m", "longtail", *command, "--help"]
    environment = os.environ | {"COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(arguments, check=True, capture_output=True, text=True, env=environment).stdout


def files() -> str:
    """The modules of each package with the first line of their docstrings."""
    out = io.StringIO()
    for package in [SOURCE, *sorted(path.parent for path in SOURCE.rglob("__init__.py") if path.parent != SOURCE)]:
        name = package.relative_to(SOURCE.parent).as_posix()
        print(f"\n### `{name}`\n\n{_summary(package / '__init__.py')}\n", file=out)
        modules = [path for path in sorted(package.glob("*.py")) if path.name != "__init__.py"]
        if modules:
            print("| file | content |\n| --- | --- |", file=out)
        for path in modules:
            print(f"| `{path.name}` | {_summary(path)} |", file=out)
    return out.getvalue()


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return _escaped(docstring.partition("\n\n")[0].replace("\n", " "))


def tables(text: str) -> str:
    """The tables of a Markdown file without empty and repeated columns, each after the heading that precedes it."""
    out, rows, heading = io.StringIO(), list[list[str]](), ""
    for line in [*text.splitlines(), ""]:
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        elif line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            if heading:
                print(f"\n**{heading}**", file=out)
            columns = list(zip(*rows, strict=True))
            kept = [k for k, (_, _, *cells) in enumerate(columns) if any(cells) and cells not in _cells(columns[:k])]
            print("\n:::{container} results", file=out)
            for row in rows:
                print("| " + " | ".join(row[k] for k in kept) + " |", file=out)
            print(":::", file=out)
            rows, heading = [], ""
    return out.getvalue()


def _cells(columns: list[tuple[str, ...]]) -> list[list[str]]:
    return [list(cells) for _, _, *cells in columns]
