"""Trains recipes with several seeds and writes one table: mean ± std, as JSON and Markdown.

    python benchmarks/accuracy.py digits digits-lt-ce digits-lt-ride --seeds 5
    python benchmarks/accuracy.py cifar100-40epochs cifar100-lt-ce cifar100-lt-ride --seeds 1 --training.epochs 40

Runs lie in ``runs/NAME/RECIPE-seedS``; finished ones with the same settings are used again. Instead of a recipe, the
folder of a finished run is taken as it is. The table goes to ``benchmarks/results/NAME.json`` and ``.md``.
"""

import argparse
import json
import shlex
import statistics
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

import longtail
from longtail.model_file import MODEL_FILE
from longtail.run import Run
from longtail.settings import about, recipe_names, resolve

RESULTS = Path(__file__).parent / "results"
COLUMNS = ("accuracy", "balanced", "many", "medium", "few", "ece")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the table")
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--seeds", type=int, default=5)
    known, settings = parser.parse_known_args()
    rows = {}
    for recipe in known.recipes:
        if (Path(recipe) / MODEL_FILE).is_file():
            runs = [Run.open(recipe)]
        else:
            runs = [train(known.name, recipe, seed, settings) for seed in range(known.seeds)]
        described = about(recipe).description if recipe in recipe_names() else in_words(runs[0])
        rows[Path(recipe).name] = {"what": described, "seeds": [one_seed(run) for run in runs]}
        environment = runs[0].environment()
    table = {
        "command": shlex.join(["python", "benchmarks/accuracy.py", *sys.argv[1:]]),
        "environment": {key: environment[key] for key in ("python", "device", "device_name", "packages")},
        "recipes": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{known.name}.json").write_text(json.dumps(table, indent=1) + "\n")
    (RESULTS / f"{known.name}.md").write_text(markdown(table, known.seeds))
    print(markdown(table, known.seeds))


def train(name: str, recipe: str, seed: int, settings: list[str]) -> Run:
    config = resolve(recipe, {"seed": seed}, settings)
    folder = Path("runs") / name / f"{recipe}-seed{seed}"
    if (folder / "results.json").is_file() and Run.open(folder).config == config:
        return Run(folder)
    return longtail.train(config, folder, Console())


def one_seed(run: Run) -> dict[str, Any]:
    test = json.loads((run.folder / "results.json").read_text())["test"]
    seconds = run.environment()["training_seconds"]
    experts = [expert["accuracy"] for expert in test["experts"]]
    row = {name: test[name] for name in COLUMNS} | {"experts": experts, "seconds": seconds}
    routing = test.get("routing", {})
    wanted = ("accuracy", "many", "medium", "few", "relative_cost", "cost", "shares", "threshold", "chosen_on")
    return row | {"routed": {name: routing[name] for name in wanted} if routing else None}


def in_words(run: Run) -> str:
    config = run.config
    taught = f", taught by {Path(config.teacher).name}" if config.teacher else ""
    experts = "1 expert" if config.model.num_experts == 1 else f"{config.model.num_experts} experts"
    return f"{config.loss.name}, {experts}{taught}, {config.training.epochs} epochs, seed {config.seed}"


def markdown(table: dict[str, Any], seeds: int) -> str:
    many = f"mean ± standard deviation over {seeds} seeds" if seeds > 1 else "one run, seed 0"
    device = table["environment"]
    lines = [
        f"Test accuracy in %, {many}. `{table['command']}`",
        "",
        f"{device['device_name']}, torch {device['packages']['torch']}, longtail {device['packages']['longtail']}",
        "",
        "Routed: with as many experts as the router gives each image; cost is in times the first expert's.",
        "",
        "| recipe | overall | balanced | many | medium | few | ECE | routed | cost | training time | what it is |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for recipe, row in table["recipes"].items():
        runs = row["seeds"]
        cells = [cell([run[name] for run in runs]) for name in COLUMNS]
        routed = [run["routed"] for run in runs if run["routed"]]
        cells.append(cell([one["accuracy"] for one in routed]))
        cells.append(f"{statistics.mean(one['relative_cost'] for one in routed):.2f}" if routed else "n/a")
        seconds = statistics.mean(run["seconds"] for run in runs)
        duration = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        lines.append(f"| {recipe} | {' | '.join(cells)} | {duration} | {row['what']} |")
    return "\n".join(lines) + "\n"


def cell(values: list[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return "n/a"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


if __name__ == "__main__":
    main()
