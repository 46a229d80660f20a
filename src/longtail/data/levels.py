"""Levels: what the numbers of an image of more than 8 bits mean, and how they become 8 bits."""

import logging
from collections.abc import Sequence
from multiprocessing import parent_process
from typing import Any

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

BITS = (8, 10, 12, 14, 16)
"""Of the sensors and programs that write files of 16 bits"""

GUESSED_BITS = (8, 10, 12)
"""Taken for the bits of an image if they hold its largest value and the file says nothing. Read as 16 bits, such an
image would have at most 16 of 256 grey levels, and what it shows would be lost. A wrong guess makes a dark image
bright, but keeps what it shows. 14 bits are not guessed: 64 levels remain without a guess, and many dark images look
like them"""

FLOAT_WHITES = (1.0, 255.0, 65535.0)

ROWS = 256
"""Converted at a time, because the numbers take 4 bytes or more meanwhile"""

_noted: set[float] = set()


def to_eight_bits(values: NDArray[Any], stated: float | None = None) -> NDArray[np.uint8]:
    """Scales values to 8 bits: 0 becomes 0, and white 255.

    White is the smallest of `possible_whites` that no value exceeds. Scaling by the largest value instead would give
    the images of a data set different scales. Only images with negative or larger values are scaled to their own range.
    NaN and infinity become the lowest level.

    Args:
        values: (H, ...), of any type.
        stated: the largest possible value, if the file says it.
    """
    is_float = values.dtype.kind == "f"
    finite = np.isfinite(values) if is_float else True
    low, high = (float(edge(values, initial=0, where=finite)) for edge in (np.min, np.max))
    whites = possible_whites(values.dtype, stated)
    white = next((white for white in whites if low == 0 and high <= white), high)
    if stated is None and not is_float and high > 0 and white in whites[:-1]:
        _note_guess(values.dtype.itemsize * 8, white)
    scaled = np.empty(values.shape, dtype=np.uint8)
    for start in range(0, len(values), ROWS):
        part = values[start : start + ROWS]
        part = np.where(np.isfinite(part), part, low) if is_float else part
        part = part.astype(np.result_type(part, np.float32))
        scaled[start : start + ROWS] = np.rint((part - low) * (255 / (white - low)))
    return scaled


def possible_whites(dtype: np.dtype[Any], stated: float | None) -> Sequence[float]:
    """Returns the values that can be white, ascending.

    A stated one is rounded up to a usual number of bits, because some programs write the largest value that occurs.
    """
    if dtype.kind == "f":
        return FLOAT_WHITES
    largest = float(min(np.iinfo(dtype).max, 65535))
    usual = [2.0**bits - 1 for bits in (GUESSED_BITS if stated is None else BITS)]
    usual = [white for white in usual if (stated or 0) <= white < largest]
    return (usual if stated is None else usual[:1]) + [largest]


def _note_guess(bits: int, white: float) -> None:
    """Logs a guess once, and not in every worker."""
    if white not in _noted and parent_process() is None:
        _noted.add(white)
        logger.warning(
            "Images of %d bits without a value above %s are read as images of %d bits",
            bits,
            f"{white:,.0f}",
            int(white).bit_length(),
        )
