"""Numbers, texts and tables as people read them."""

import re
from collections.abc import Collection, Sequence


def percent(fraction: float | None) -> str:
    """Without the sign; n/a for what there is none of."""
    return "n/a" if fraction is None else f"{100 * fraction:.1f}"


def pluralize(number: int, singular: str, plural: str = "") -> str:
    """Returns a number with its noun; the plural ends with s by default."""
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"


def shortened_list(names: Collection[str], limit: int = 20) -> str:
    """Returns names separated by commas; of very many, the first."""
    more = len(names) - limit
    return ", ".join(list(names)[:limit]) + (f" and {more} more" if more > 0 else "")


def short(number: float) -> str:
    """A large number with two digits after the point: 2.50 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """In the largest unit that leaves two or more."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def escape(text: object, longest: int = 60) -> str:
    """A text that Markdown shows as it is, on one line and not too long."""
    line = " ".join(str(text).split())
    line = line if len(line) <= longest else line[: longest - 1] + "…"
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", line)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> list[str]:
    """Its lines; the first columns are texts and stand on the left, numbers on the right."""
    lines = [header, ["---"] * texts + ["---:"] * (len(header) - texts), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
