"""Lines of CSV files, with names that may hold anything."""

import csv
import io
from collections.abc import Sequence

FORMULA = ("=", "+", "-", "@")
"""First characters of what spreadsheets compute"""


def csv_line(cells: Sequence[object]) -> str:
    """Returns a line of CSV with its line end."""
    line = io.StringIO()
    # Python 3.11 does not quote a carriage return by itself.
    has_return = any("\r" in str(cell) for cell in cells)
    csv.writer(line, lineterminator="\n", quoting=csv.QUOTE_ALL if has_return else csv.QUOTE_MINIMAL).writerow(cells)
    return line.getvalue()


def path_cell(path: str) -> str:
    """Returns a path that no spreadsheet takes for a formula; it names the same file."""
    return f"./{path}" if path.startswith(FORMULA) else path
