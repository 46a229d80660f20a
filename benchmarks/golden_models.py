"""How far our networks are from the original RIDE and RIDE-Swin code, given the same weights and images: a table.

    python benchmarks/golden_models.py                 # all, half an hour on one CPU core
    python benchmarks/golden_models.py cifar swin_tiny  # those whose name has one of these in it

Differences are relative to the largest value the original yields, in float32. "noise" is how far the original itself is
in float32 from its float64, at its worst. "float64" compares logits, where stored, and the loss when both compute in
double precision; "gradient" is the largest over parameters of the difference in norm, also in double precision. Of the
networks in between only names and shapes are stored. Those at the end have a router: how many experts each image sees
must be the same exactly; "logits" are the routed answers, and those where every expert is asked; the router's outputs,
loss and gradient are the worst of what is stored, with running statistics and with the batch's, all in float32.

Without ``LONGTAIL_GOLDEN``, a folder with all of the original's values, only those in `tests/golden` are compared.
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
    parts = sys.argv[1:] or [""]
    cases = [name for name in RUN_CASES + COUNTED_CASES + ROUTED_CASES if any(part in name for part in parts)]
    width = max(map(len, RUN_CASES))
    columns: tuple[str, ...] = ()
    for name in cases:
        previous, columns = columns, ROUTED_COLUMNS if name in ROUTED_CASES else COLUMNS
        if columns != previous:
            heads = [f"{column:>13}" for column in columns]
            print("case".ljust(width), "experts", " parameters", "mode ", *heads, "seconds")
        if not (golden.ROOT / "models" / name).is_dir():
            print(name.ljust(width), f"is not in {golden.ROOT}")
        elif name in COUNTED_CASES:
            print(name.ljust(width), count(name))
        else:
            case = load(name)
            for mode in ("route",) if name in ROUTED_CASES else ("eval", "train"):
                began = time.perf_counter()
                row = routed_errors(case) if mode == "route" else errors(case, mode)
                figures = [f"{error:13.1e}" if error is not None else f"{'-':>13}" for error in row]
                seconds = time.perf_counter() - began
                experts, parameters = architecture(case.keys)["num_experts"], case.keys["num_params"]
                line = [
                    name.ljust(width),
                    f"{experts:7}",
                    f"{parameters:11,}",
                    f"{mode:5}",
                    *figures,
                    f"{seconds:7.1f}",
                ]
                print(*line, flush=True)


def routed_errors(case: Case) -> list[float | None]:
    """One number for each of `ROUTED_COLUMNS`."""
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
    """Experts and parameters, and whether ours has as many."""
    keys, _ = shapes(name)
    with torch.device("meta"):
        model = create_model(**architecture(keys))
    ours = sum(parameter.numel() for parameter in model.parameters())
    verdict = "as many" if ours == keys["num_params"] else f"DIFFERS: {ours:,}"
    return f"{model.num_experts:7} {keys['num_params']:11,} {verdict}"


def errors(case: Case, mode: str) -> list[float | None]:
    """One number for each of `COLUMNS`; None where the original's values are not stored."""
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
