"""How far our networks are from the original RIDE code, given the same weights and images: a table.

    python benchmarks/golden_models.py

Differences are relative to the largest value the original yields, in float32; "float64" is the larger one of logits and
loss when both compute in double precision; "gradient" the largest over parameters of the difference in norm, also in
double precision. Needs the whole golden values in ``../shared/golden`` for all cases.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import golden
from golden.networks import CIFAR_CASES, Case, distance, load, measure

COLUMNS = ("logits", "expert logits", "features", "loss", "float64", "gradient")


def main() -> None:
    width = max(map(len, CIFAR_CASES))
    print("case".ljust(width), "experts", "parameters", "mode ", *(f"{name:>13}" for name in COLUMNS), "seconds")
    for name in CIFAR_CASES:
        if not (golden.ROOT / "models" / name).is_dir():
            print(name.ljust(width), f"is not in {golden.ROOT}")
            continue
        case = load(name)
        for mode in ("eval", "train"):
            began = time.perf_counter()
            figures = [f"{error:13.1e}" if error is not None else f"{'-':>13}" for error in errors(case, mode)]
            seconds = time.perf_counter() - began
            experts, parameters = case.keys["args"]["num_experts"], case.keys["num_params"]
            print(name.ljust(width), f"{experts:7}", f"{parameters:10,}", f"{mode:5}", *figures, f"{seconds:7.1f}")


def errors(case: Case, mode: str) -> list[float | None]:
    """One number for each of `COLUMNS`; None where the original's gradients are not stored."""
    single, double = measure(case, mode), measure(case, mode, torch.float64)
    names = (f"{mode}_logits", f"{mode}_expert_logits", f"{mode}_expert_feats", f"loss_{mode}")
    row: list[float | None] = [distance(single.values[name], case.outputs[name]) for name in names]
    row.append(
        max(distance(double.values[name], case.outputs[f"{name}_f64"]) for name in (f"{mode}_logits", f"loss_{mode}"))
    )
    gradients = f"grad_norm_{mode}_f64"
    if gradients not in case.outputs:
        return [*row, None]
    theirs = case.outputs[gradients]
    return [*row, float(np.max(np.abs(double.gradient_norms / theirs - 1)))]


if __name__ == "__main__":
    main()
