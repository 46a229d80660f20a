"""Plots accuracy against the cost of training, for the runs on CIFAR-100-LT in the tables of this folder.

    python benchmarks/accuracy/training_cost.py

The cost of a training is the number of images that pass through the network, views counted one by one, times the
multiply-accumulates of its forward pass.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
OUTPUT = HERE.parents[1] / "docs" / "_static" / "training-cost.svg"
NUM_IMAGES = 10_847

POINTS = {
    "cross-entropy": [("methods-40epochs", "cifar100-lt-ce", 40), ("200epochs", "cifar100-lt-ce", 200)],
    "balanced softmax": [
        ("methods-40epochs", "cifar100-lt-balanced-softmax", 40),
        ("200epochs", "cifar100-lt-balanced-softmax", 200),
    ],
    "LDAM-DRW": [("methods-40epochs", "cifar100-lt-ldam-drw", 40), ("200epochs", "cifar100-lt-ldam-drw", 200)],
    "RIDE": [
        ("methods-40epochs", "cifar100-lt-ride", 40),
        ("short", "ride", 60),
        ("200epochs", "cifar100-lt-ride", 200),
    ],
    "BalPoE": [("methods-40epochs", "cifar100-lt-balpoe", 40)],
    "logit adjustment per expert (cifar100-lt-short)": [("short", "small-batches", 60)],
    "MDCS, cosine (cifar100-lt-best: 200 passes)": [("short", "two-views", 60), ("short", "two-views-100", 200)],
}
"""Table, row, and passes of each image through the network"""


def main() -> None:
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "longtail", "font.size": 9}
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for label, points in POINTS.items():
        found = []
        for table, name, passes in points:
            rows = json.loads((HERE / f"cifar100-lt-{table}.json").read_text())["rows"]
            mean = next(row["mean"] for row in rows if row["name"] == name)
            found.append((passes * NUM_IMAGES * mean["macs"] / 1e12, 100 * mean["overall"]))
        axes.plot(*zip(*found, strict=True), "o-", label=label, markersize=5, linewidth=1.2)
    axes.axhline(48.6, color="0.6", linewidth=0.8, linestyle=":")
    axes.annotate("RIDE, published (routed)", (2, 48.6), va="bottom", color="0.4")
    axes.set(xlabel="cost of training (10¹² multiply-accumulates)", ylabel="test accuracy (%)")
    axes.set(xlim=(0, 232), ylim=(25, 56))
    axes.legend(frameon=False, loc="lower right", fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    OUTPUT.parent.mkdir(exist_ok=True)
    figure.savefig(OUTPUT, metadata={"Date": None})
    print(OUTPUT)


if __name__ == "__main__":
    main()
