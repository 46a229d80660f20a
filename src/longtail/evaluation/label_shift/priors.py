"""How common each class is among images to be classified, from a file. NumPy only."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.utils.errors import InputError, did_you_mean

UNIFORM = "uniform"


def read_prior(where: str | Path, class_names: Sequence[str]) -> NDArray[np.float64]:
    """Shard of each class: (C,), which sum to 1.

    Args:
        where: "uniform", or a file with one number for each class, 0 or more, which need not sum to 1: JSON (a list in
            the order of the classes, or an object by their names), or text with a number a line.
        class_names: C names.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    if str(where) == UNIFORM:
        return np.full(len(class_names), 1 / len(class_names))
    try:
        text = Path(where).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"prior '{where}': no such file; it must be a file, or '{UNIFORM}'") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prior '{where}' cannot be read: {error}") from error
    numbers = _from_json(text, where, class_names) if text.lstrip()[:1] in ("[", "{") else _from_text(text, where)
    if len(numbers) != len(class_names):
        raise InputError(f"{where}: {len(numbers)} numbers for {len(class_names)} classes; there must be one for each")
    for number, name in zip(numbers, class_names, strict=True):
        if not (math.isfinite(number) and number >= 0):
            raise InputError(f"{where}: {number} for class '{name}'; it must be a number, 0 or more")
    if not any(numbers):
        raise InputError(f"{where}: 0 for every class; one must be above 0")
    prior: NDArray[np.float64] = np.asarray(numbers) / max(numbers)  # large numbers would have an infinite sum
    prior /= prior.sum()
    return prior


def _from_json(text: str, where: str | Path, class_names: Sequence[str]) -> list[float]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error
    if isinstance(found, dict):
        for name in found:
            if name not in class_names:
                raise InputError(f"{where}: no class is called '{name}'{did_you_mean(name, list(class_names))}")
        if missing := [name for name in class_names if name not in found]:
            raise InputError(
                f"{where}: no number for {len(missing)} of {len(class_names)} classes; first '{missing[0]}'"
            )
        found = [found[name] for name in class_names]
    for value in found:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{where}: {json.dumps(value)[:60]} where there must be a number")
    try:
        return [float(value) for value in found]
    except OverflowError:
        raise InputError(f"{where}: a number is too large") from None


def _from_text(text: str, where: str | Path) -> list[float]:
    numbers = []
    for count, line in enumerate(text.splitlines(), start=1):
        for word in line.split():
            try:
                numbers.append(float(word))
            except ValueError:
                raise InputError(f"{where}:{count}: '{word[:60]}' where there must be a number") from None
    return numbers
