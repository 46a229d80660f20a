"""The table of an experiment: mean ± standard deviation over seeds, beside published values."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from longtail.config.recipes import Settings, flat
from longtail.evaluation.flops import cost
from longtail.experiments.spec import Job, Published
from longtail.models.multi_expert import create_model
from longtail.reports.tables import ACCURACIES, ReportTable
from longtail.runs.model_file import load_metadata
from longtail.runs.run import Run
from longtail.utils.files import write_atomically
from longtail.utils.format import duration, escape, macs, percent, pluralize

COLUMNS = ("row", *ACCURACIES, "ECE", "MACs", "routed", "MACs", "time", "published")
Numbers = dict[str, float | None]


def numbers(run: Run) -> Numbers:
    """Returns the test results of a finished run: fractions, multiply-accumulates per image, seconds."""
    test = run.results()["test"]
    routing = test.get("routing") or {}
    metadata = load_metadata(run.model_path)
    architecture = {name: value for name, value in metadata.architecture.items() if name != "router"}
    return {
        "overall": test["accuracy"],
        **{name: test[name] for name in (*ACCURACIES[1:], "ece", "nll")},
        "macs": _macs(json.dumps(architecture), metadata.image_size),
        "routed": routing.get("accuracy"),
        **{f"routed_{name}": routing.get(name) for name in ACCURACIES[1:]},
        "routed_macs": routing.get("cost"),
        "seconds": run.environment().get("training_seconds"),
    }


@cache
def _macs(architecture: str, image_size: int) -> int:
    """Returns the multiply-accumulates of all experts for one image; slow to compute."""
    with torch.device("meta"):
        return cost(create_model(**json.loads(architecture)), image_size).total


def collect(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Returns one entry for each row: its definition, the numbers of each finished seed, their mean and deviation."""
    entries: dict[str, dict[str, Any]] = {}
    for job in jobs:
        entry = entries.setdefault(job.row.name, {**asdict(job.row), "seeds": []})
        if job.run.is_finished:
            entry["seeds"].append({"seed": job.seed, **numbers(job.run)})
    for entry in entries.values():
        entry["mean"], entry["std"] = _summary(entry["seeds"])
    return list(entries.values())


def _summary(seeds: Sequence[Numbers]) -> tuple[Numbers, Numbers]:
    """Mean, and sample standard deviation if there are several seeds."""
    names = [name for name in seeds[0] if name != "seed"] if seeds else []
    values = {name: [value for seed in seeds if (value := seed[name]) is not None] for name in names}
    mean = {name: statistics.mean(found) if found else None for name, found in values.items()}
    return mean, {name: statistics.stdev(found) if len(found) > 1 else None for name, found in values.items()}


def agreement(entries: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Counts the pairs of rows in the order of their published accuracies, and the pairs with different published ones.

    Routed accuracies are compared if only these were published.
    """
    accuracies = []
    for entry in entries:
        published = Published(**(entry["published"] or {}))
        measured = entry["mean"].get("routed" if published.overall is None else "overall")
        if published.accuracy is not None and measured is not None:
            accuracies.append((published.accuracy, measured))
    pairs = [(a, b) for a, b in combinations(accuracies, 2) if a[0] != b[0]]
    return sum((a[0] - b[0]) * (a[1] - b[1]) > 0 for a, b in pairs), len(pairs)


def write_table(path: Path, table: Mapping[str, Any]) -> None:
    """Writes ``path.json`` and ``path.md``.

    Args:
        path: without a suffix.
        table: title, command, environments of the trainings, seeds, settings of all rows, and rows from `collect`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path.with_name(f"{path.name}.json"), (json.dumps(table, indent=1) + "\n").encode())
    write_atomically(path.with_name(f"{path.name}.md"), markdown(table).encode())


def markdown(table: Mapping[str, Any]) -> str:
    """Returns the table as Markdown; arguments as in `write_table`."""
    seeds, entries = table["seeds"], table["rows"]
    several = f"mean ± sample standard deviation over seeds {', '.join(map(str, seeds))}"
    agreeing, compared = agreement(entries)
    paragraphs = [
        f"# {escape(table['title'], 1000)}",
        f"Test accuracy in %, {several if len(seeds) > 1 else f'one run, seed {seeds[0]}'}. `{table['command']}`",
        f"{'; '.join(dict.fromkeys(map(_machine, table['environments'])))}. MACs: multiply-accumulates for one image, "
        "with all experts and routed. ECE: expected calibration error. Published: overall (many/medium/few).",
        f"Settings of all rows: {_listed(table['settings'])}." if table["settings"] else "",
        ReportTable(COLUMNS, [_cells(entry, len(seeds)) for entry in entries]).markdown(),
        f"{agreeing} of {compared} pairs of rows are in the order of their published accuracies." if compared else "",
        "\n".join(map(_described, entries)),
    ]
    return "\n\n".join(filter(None, paragraphs)) + "\n"


def _machine(environment: Mapping[str, Any]) -> str:
    threads = f", {pluralize(environment['threads'], 'thread')}" if environment["device"] == "cpu" else ""
    packages = environment["packages"]
    return f"{environment['device_name']}{threads}, longtail {packages['longtail']}, torch {packages['torch']}"


def _cells(entry: Mapping[str, Any], wanted: int) -> list[str]:
    done, mean, std = len(entry["seeds"]), entry["mean"], entry["std"]
    if not done:
        return [entry["name"], "not trained yet", *[""] * (len(COLUMNS) - 3), _published(entry)]

    def spread(name: str) -> str:
        deviation = "" if std[name] is None else f" ± {percent(std[name])}"
        return "" if mean[name] is None else percent(mean[name]) + deviation

    return [
        entry["name"] if done == wanted else f"{entry['name']} ({done} of {wanted} seeds)",
        *map(spread, (*ACCURACIES, "ece")),
        macs(mean["macs"]),
        spread("routed"),
        "" if mean["routed_macs"] is None else macs(mean["routed_macs"]),
        "" if mean["seconds"] is None else duration(mean["seconds"]),
        _published(entry),
    ]


def _published(entry: Mapping[str, Any]) -> str:
    published = Published(**(entry["published"] or {}))
    if published.accuracy is None:
        return ""
    groups = [published.many, published.medium, published.few]
    shown = "" if None in groups else f" ({'/'.join(f'{group:.1f}' for group in groups)})"
    routed = ", routed" if published.overall is None else ""
    return f"{published.accuracy:.1f}{shown}{routed}" + (f", {published.source}" if published.source else "")


def _described(entry: Mapping[str, Any]) -> str:
    changed = _listed(entry["settings"])
    note = f"; {entry['note']}" if entry["note"] else ""
    return f"- {escape(entry['name'])}: `{entry['recipe']}`{f' with {changed}' if changed else ''}{note}"


def _listed(settings: Settings) -> str:
    return ", ".join(f"`{name}: {value}`" for name, value in flat(settings).items())
