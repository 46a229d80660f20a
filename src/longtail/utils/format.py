"""Numbers and texts as people read them."""

import math
import re
from collections.abc import Collection

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
"""Prefixes of large numbers"""


def percent(fraction: float | None) -> str:
    """Returns a fraction in percent with one digit after the point, without the sign; n/a for None."""
    return "n/a" if fraction is None else f"{100 * fraction:.1f}"


def pluralize(number: int, singular: str, plural: str = "") -> str:
    """Returns a number with its noun; the plural ends with s by default."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def shortened_list(names: Collection[str], limit: int = 20) -> str:
    """Returns names separated by commas; of very many, the first."""
    more = len(names) - limit
    return ", ".join(list(names)[:limit]) + (f" and {more} more" if more > 0 else "")


def unit_of(number: float) -> tuple[str, float]:
    """Returns the largest unit that is not above a number, and its size: 72e6 -> ("M", 1e6)."""
    return next(((unit, size) for unit, size in reversed(UNITS.items()) if number >= size), ("", 1.0))


def macs(number: float) -> str:
    """Returns a number of multiply-accumulates with three digits and its unit: "72.3 M"."""
    unit, size = unit_of(number)
    return f"{number / size:.{max(0, 2 - int(math.log10(max(number / size, 1))))}f} {unit}".rstrip()


def exact(number: float) -> str:
    """Returns a large number with two digits after the point and its unit: "100.36 M"."""
    unit, size = unit_of(number)
    return f"{number / size:.2f} {unit}" if unit else f"{number:.0f}"


def rate(number: float | None) -> str:
    """Returns images per second with three digits, or as a whole number; n/a for None."""
    return "n/a" if number is None else f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def rarest(smallest: int, largest: int) -> str:
    """Returns the images of the rarest class in words, with the imbalance: "5, an imbalance of 100 to 1"."""
    return f"{smallest:,}, an imbalance of {largest / smallest:,.4g} to 1" if smallest else "none"


def duration(seconds: float) -> str:
    """Returns a time in the largest unit of which it has at least two."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def escape(text: object, limit: int = 60) -> str:
    """Returns a text without Markdown's special characters: one line, shortened to the limit."""
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", line)
