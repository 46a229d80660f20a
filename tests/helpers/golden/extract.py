"""Extracts the small part of the golden values that the repository keeps from the full set.

PYTHONPATH=tests python -m helpers.golden.extract ../shared/golden
"""

import json
import re
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parents[2] / "golden"

# File -> arrays to keep (npz) or the entries to keep (json), as one regular expression over names. Lists are kept.
KEPT_ARRAYS = {
    "models/cifar_resnet32_e1_rd0_un0/outputs.npz": ".*",
    "models/cifar_resnet32_e3_rd1_un1/outputs.npz": ".*",
    "losses/ride_losses.npz": r"(ride|ldam|ce)/.*|distill/(m045/epoch161|factors.*|noextra)/.*"
    "|expert_logits|targets|teacher_logits|cls_num_list",
    "models/cifar_resnet32ea_e3/outputs.npz": r"(eval|loss|grad_norm)_.*|.*_router_outputs|targets.*"
    "|forceall_(logits|num_experts)",
    "losses/swin_losses.npz": r"ldam(_hard|_soft)?/.*|soft_ce/.*|ride/f020_rf002/epoch24[01]/.*"
    "|ride/(margins|class_weights|diversity_temperature)|expert_logits|hard_targets|soft_targets",
    "losses/mdcs_losses.npz": r"[14]_.*",
    "schedules/ride_lr.npz": ".*",
    "schedules/swin_lr.npz": r"batch512_7steps/lr_after_update",
    "data/cifar_lt_indices.npz": r"indices_cifar(10|100)_exp_0.01",
    "data/shot_splits.npz": ".*",
    "tau_norm/tau_norm.npz": ".*",
}
KEPT_TABLES = {
    "models/cifar_resnet32_e1_rd0_un0/keys.json": ".*",
    "models/cifar_resnet32_e3_rd1_un1/keys.json": ".*",
    "models/cifar_resnet32ea_e3/keys.json": ".*",
    "losses/ride_losses.json": ".*",
    "losses/swin_losses.json": ".*",
    "losses/mdcs_losses.json": ".*",
    "schedules/ride_lr.json": ".*",
    "schedules/swin_lr.json": ".*",
    "data/cifar_lt_counts.json": "counts",
}


def main() -> None:
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    source = Path(sys.argv[1])
    for name, kept in KEPT_ARRAYS.items():
        with np.load(source / name) as file:
            arrays = {key: file[key] for key in file.files if re.fullmatch(kept, key)}
        np.savez_compressed(_target(name), **arrays)
    for name, kept in KEPT_TABLES.items():
        entries = json.loads((source / name).read_text())
        if isinstance(entries, dict):
            entries = {key: value for key, value in entries.items() if re.fullmatch(kept, key)}
        _target(name).write_text(json.dumps(entries, separators=(",", ":")) + "\n")
    sizes = [(HERE / name).stat().st_size for name in (*KEPT_ARRAYS, *KEPT_TABLES)]
    print(f"{len(sizes)} files, {sum(sizes) / 1e6:.2f} MB")


def _target(name: str) -> Path:
    target = HERE / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


if __name__ == "__main__":
    main()
