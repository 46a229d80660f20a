"""How far our networks are from the original RIDE and RIDE-Swin code, given the same weights and images: a table.

    python benchmarks/golden_models.py                 # all, half an hour on one CPU core
    python benchmarks/golden_models.py cifar swin_tiny  # those whose name has one of these in it

Differences are relative to the largest value the original yields, in float32. "noise" is how far the original itself is
in float32 from its float64, at its worst. "float64" compares logits, where stored, and the loss when both compute in
double precision; "gradient" is the largest over parameters of the difference in norm, also in double precision. Of the
networks at the end only names and shapes are stored. Needs the whole golden values in ``../shared/golden`` for all.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import golden
from golden.networks import COUNTED_CASES, RUN_CASES, Case, architecture, distance, load, measure, shapes

from longtail.models.experts import create_model

COLUMNS = ("logits", "expert logits", "features", "noise", "float64", "gradient")


def main() -> None:
    parts = sys.argv[1:] or [""]
    cases = [name for name in RUN_CASES + COUNTED_CASES if any(part in name for part in parts)]
    width = max(map(len, RUN_CASES))
    print("case".ljust(width), "experts", " parameters", "mode ", *(f"{name:>13}" for name in COLUMNS), "seconds")
    for name in cases:
        if not (golden.ROOT / "models" / name).is_dir():
            print(name.ljust(width), f"is not in {golden.ROOT}")
        elif name in COUNTED_CASES:
            print(name.ljust(width), count(name))
        else:
            case = load(name)
            for mode in ("eval", "train"):
                began = time.perf_counter()
                figures = [f"{error:13.1e}" if error is not None else f"{'-':>13}" for error in errors(case, mode)]
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
