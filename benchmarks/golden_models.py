"""Differences between our models and the original RIDE and RIDE-Swin code, with the same weights and images.

    python benchmarks/golden_models.py                  # all, half an hour on one CPU core
    python benchmarks/golden_models.py cifar swin_tiny  # only cases whose name contains one of these

Differences are relative to the largest value of the original, in float32. Columns:

- noise: largest difference between float32 and float64 in the original.
- float64: logits, if they are stored, and loss, computed by both in double precision.
- gradient: largest relative difference of the norm of a parameter's gradient, in double precision.

Of some models, which follow, only names and shapes are stored. The last models have a router. For these, the number of
experts of each image must be equal. "logits" are those of routing and of all experts. The router's outputs, loss and
gradient are the largest differences of all stored values, with running and with batch statistics, in float32.

``LONGTAIL_GOLDEN`` names a folder with all values of the original. Without it, and without a folder `shared/golden`
next to the repository, only the values in `tests/golden` are compared.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from helpers import golden
from helpers.golden.networks import (
    COUNTED_CASES,
    ROUTED_CASES,
    RUN_CASES,
    Case,
    architecture,
    distance,
    load,
    measure,
    shapes,
)
from helpers.golden.routers import TAGS, measure_routed

from longtail.models.multi_expert import create_model

COLUMNS = ("logits", "expert logits", "features", "noise", "float64", "gradient")
ROUTED_COLUMNS = ("logits", "expert logits", "features", "router", "loss", "gradient")


def main() -> None:
    wanted = sys.argv[1:] or [""]
    cases = [name for name in RUN_CASES + COUNTED_CASES + ROUTED_CASES if any(text in name for text in wanted)]
    width = max(map(len, RUN_CASES))
    columns: tuple[str, ...] = ()
    for name in cases:
        previous, columns = columns, ROUTED_COLUMNS if name in ROUTED_CASES else COLUMNS
        if columns != previous:
            headings = [f"{column:>13}" for column in columns]
            print("case".ljust(width), "experts", " parameters", "mode ", *headings, "seconds")
        if not (golden.ROOT / "models" / name).is_dir():
            print(name.ljust(width), f"is not in {golden.ROOT}")
        elif name in COUNTED_CASES:
            print(name.ljust(width), count(name))
        else:
            case = load(name)
            for mode in ("route",) if name in ROUTED_CASES else ("eval", "train"):
                start = time.perf_counter()
                row = routed_errors(case) if mode == "route" else errors(case, mode)
                cells = [f"{error:13.1e}" if error is not None else f"{'-':>13}" for error in row]
                seconds = time.perf_counter() - start
                experts, parameters = architecture(case.keys)["num_experts"], case.keys["num_params"]
                line = [
                    name.ljust(width),
                    f"{experts:7}",
                    f"{parameters:11,}",
                    f"{mode:5}",
                    *cells,
                    f"{seconds:7.1f}",
                ]
                print(*line, flush=True)


def routed_errors(case: Case) -> list[float | None]:
    """Returns the values of `ROUTED_COLUMNS`."""
    ours, theirs = measure_routed(case), case.outputs
    for array in ("eval_num_experts", "forceall_num_experts"):
        assert np.array_equal(ours.values[array], theirs[array]), f"{case.keys['case']}: {array} differs"
    arrays = (
        ("eval_logits", "forceall_logits"),
        ("forceall_expert_logits",),
        ("forceall_expert_feats",),
        ("forceall_router_outputs", *(f"{tag}_router_outputs" for tag in TAGS)),
        tuple(f"loss_{tag}" for tag in TAGS),
    )
    gradient = max(np.abs(ours.gradient_norms[tag] / theirs[f"grad_norm_{tag}"] - 1).max() for tag in TAGS)
    return [*(max(distance(ours.values[name], theirs[name]) for name in names) for names in arrays), float(gradient)]


def count(name: str) -> str:
    """Compares the number of parameters."""
    keys, _ = shapes(name)
    with torch.device("meta"):
        model = create_model(**architecture(keys))
    ours = sum(parameter.numel() for parameter in model.parameters())
    verdict = "equal" if ours == keys["num_params"] else f"DIFFERENT: {ours:,}"
    return f"{model.num_experts:7} {keys['num_params']:11,} {verdict}"


def errors(case: Case, mode: str) -> list[float | None]:
    """Returns the values of `COLUMNS`; None if the original's value is not stored."""
    gradients = f"grad_norm_{mode}_f64"
    single = measure(case, mode, gradients=False).values
    names = [f"{mode}_{kind}" for kind in ("logits", "expert_logits", "expert_feats")]
    noise = max(case.tolerance(name, 0.0) for name in names) / 5
    row: list[float | None] = [distance(single[name], case.outputs[name]) for name in names]
    row.append(noise or None)
    names = [name for name in (f"{mode}_logits", f"loss_{mode}") if f"{name}_f64" in case.outputs]
    if not names:
        return [*row, None, None]
    double = measure(case, mode, torch.float64, gradients=gradients in case.outputs)
    row.append(max(distance(double.values[name], case.outputs[f"{name}_f64"]) for name in names))
    if gradients not in case.outputs:
        return [*row, None]
    theirs = case.outputs[gradients]
    return [*row, float(np.max(np.abs(double.gradient_norms / theirs - 1)))]


if __name__ == "__main__":
    main()
