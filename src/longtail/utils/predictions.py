"""The answer to an image, and checks of the numbers that ask for it."""

from pathlib import Path
from typing import NamedTuple

from longtail.utils.errors import InputError


class ClassProbability(NamedTuple):
    """A class and its probability."""

    class_name: str
    probability: float


class Prediction(NamedTuple):
    """The most probable class of an image."""

    path: Path
    class_name: str
    probability: float
    others: tuple[ClassProbability, ...] = ()
    """The next most probable classes, as many as were asked for"""


def check_min(**numbers: tuple[int, int]) -> None:
    """Checks that numbers are not below their minimum: ``check_min(top=(top, 1))``.

    Raises:
        InputError: one is.
    """
    for name, (value, minimum) in numbers.items():
        if value < minimum:
            raise InputError(f"{name} is {value}; it must be at least {minimum}")
