"""Class shares of the images to classify, from a file."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longtail.utils.errors import InputError, did_you_mean
from longtail.utils.paths import check_regular

UNIFORM = "uniform"


def read_prior(source: str | Path, class_names: Sequence[str]) -> NDArray[np.float64]:
    """Returns the share of each class: (C,), sum 1.

    Args:
        source: "uniform", or a file with one number for each class, 0 or more, in any unit. JSON: a list in the order
            of the classes, or an object by class name. Text: one number per line.
        class_names: C names.

    Raises:
        InputError: the file is missing or invalid.
    """
    if str(source) == UNIFORM:
        return np.full(len(class_names), 1 / len(class_names))
    check_regular(Path(source))
    try:
        text = Path(source).read_text(encoding="utf-8-sig")  # Notepad of Windows can write a byte order mark
        values: Any = json.loads(text) if text.lstrip()[:1] in ("[", "{") else text.split()
    except FileNotFoundError:
        raise InputError(f"prior '{source}': no such file; name a file, or '{UNIFORM}'") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: neither UTF-8 nor JSON
        raise InputError(f"prior '{source}' cannot be read: {error}") from error
    if isinstance(values, dict):
        for name in values:
            if name not in class_names:
                raise InputError(f"{source}: unknown class '{name}'{did_you_mean(name, list(class_names))}")
        if missing := [name for name in class_names if name not in values]:
            raise InputError(f"{source}: {len(missing)} classes have no number, such as '{missing[0]}'")
        values = [values[name] for name in class_names]
    if len(values) != len(class_names):
        raise InputError(f"{source}: {len(values)} numbers for {len(class_names)} classes; each class needs one")
    numbers = np.zeros(len(class_names))
    for position, (value, name) in enumerate(zip(values, class_names, strict=True)):
        try:
            numbers[position] = float(value)
        except (TypeError, ValueError, OverflowError):
            numbers[position] = np.nan
        if not 0 <= numbers[position] < np.inf:
            raise InputError(f"{source}: class '{name}' has {str(value)[:60]}; it must be a number, 0 or more")
    if not numbers.any():
        raise InputError(f"{source}: all classes have 0; at least one must be above 0")
    prior: NDArray[np.float64] = numbers / numbers.max()  # the sum of large numbers could be infinite
    prior /= prior.sum()
    return prior
