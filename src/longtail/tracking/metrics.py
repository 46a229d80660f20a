"""The names and values that trackers send, from the records of a run folder."""

from collections.abc import Mapping
from typing import Any

SPLITS = ("val", "test")


def epoch_metrics(stage: str, record: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics of an epoch by name.

    Args:
        stage: of the training: train (the experts), classifier or router.
        record: a line of metrics.jsonl.

    Example:
        >>> epoch_metrics("train", {"epoch": 3, "loss": 0.5, "val_balanced": 0.8})
        {'train/loss': 0.5, 'val/balanced': 0.8}
    """
    values = {name: value for name, value in record.items() if name != "epoch" and _is_number(value)}
    return {f"val/{name[4:]}" if name.startswith("val_") else f"{stage}/{name}": x for name, x in values.items()}


def result_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Returns the results by name: of each split the ensemble, each expert, and routing with its shot groups.

    Args:
        results: results.json.

    Example:
        >>> result_metrics({"test": {"few": 0.25, "many": None, "routing": {"mean_experts_by_shot": {"few": 2.5}}}})
        {'results/test/few': 0.25, 'results/test/routing/mean_experts_by_shot/few': 2.5}
    """
    found: dict[str, float] = {}
    for split in filter(results.__contains__, SPLITS):
        content = results[split]
        routing = content.get("routing") or {}
        experts = enumerate(content.get("experts", ()), start=1)
        start = f"results/{split}"
        found |= _numbers(f"{start}/", content)
        found |= {name: x for k, scores in experts for name, x in _numbers(f"{start}/expert_{k}/", scores).items()}
        found |= _numbers(f"{start}/routing/", routing)
        found |= _numbers(f"{start}/routing/mean_experts_by_shot/", routing.get("mean_experts_by_shot") or {})
        shares = enumerate(routing.get("shares", ()), start=1)
        found |= _numbers(f"{start}/routing/share_of_images/", {f"{used}_used": share for used, share in shares})
    return found


def _numbers(prefix: str, values: Mapping[str, Any]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in values.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
