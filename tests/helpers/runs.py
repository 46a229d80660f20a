"""Comparisons of run folders."""

import json
from pathlib import Path

import longtail

TIMED = ("seconds", "images_per_second")


def untimed(records):
    return [{name: value for name, value in record.items() if name not in TIMED} for record in records]


def same(first: Path, second: Path) -> None:
    """Two runs ended alike: files of weights byte for byte, records but for their times."""
    a, b = longtail.Run(first), longtail.Run(second)
    results = [json.loads((folder / "results.json").read_text()) for folder in (first, second)]
    for part in ("val", "test"):
        for values in results:
            values.get(part, {}).get("routing", {}).pop("images_per_second", None)
    assert results[0] == results[1]
    if (first / "router.json").exists():
        routers = [json.loads((folder / "router.json").read_text())["epochs"] for folder in (first, second)]
        assert untimed(routers[0]) == untimed(routers[1])
    assert a.model_path.read_bytes() == b.model_path.read_bytes()
    assert untimed(a.history()) == untimed(b.history())
    assert {path.name for path in first.iterdir()} == {path.name for path in second.iterdir()}
