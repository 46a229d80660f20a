"""Reads list files: 'path label' lines, CSV and TSV, with and without header. Finds out which column is which."""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from longtail.data.image_io import is_image
from longtail.data.sources.list_paths import ROOT, ListPaths, PathPattern
from longtail.data.sources.split_names import parse_split_name

PATH_NAMES = (
    *("file_name", "filename", "file", "filepath", "file_path", "path", "image_path", "img_path", "image", "img"),
    *("image_name", "image_id", "img_id", "id", "name"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "class_name", "label_name", "category", "category_name", "target", "class_id"),
    *("label_id", "category_id", "species", "breed", "variety", "y"),
)
SPLIT_NAMES = ("split",)
"""Names of columns, in lower case, the preferred first"""

SAMPLE = 50
"""Lines by which the format of a list is found out"""

Cells = list[str]
Format = Callable[[str], Iterator[tuple[int, Cells]]]
"""Splits a text into numbered lines of cells; a comment has none"""


class Row(NamedTuple):
    """A line of a list."""

    line: int
    """From 1"""
    path: str
    label: str
    """Empty if it is missing"""
    split: str
    """Text of its split column, if any"""


class Table(NamedTuple):
    """A list file."""

    rows: list[Row]
    pattern: PathPattern
    """Where its files are"""
    problem: str = ""
    """Why its columns are not understood"""


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        yield number, "" if line.startswith("#") else line


def _words(text: str) -> Iterator[tuple[int, Cells]]:
    for number, line in _lines(text):
        yield number, line.rsplit(None, 1)  # from the right, because paths may hold spaces


def _label_first(text: str) -> Iterator[tuple[int, Cells]]:
    for number, line in _lines(text):
        yield number, line.split(None, 1)[::-1]


def _separated(separator: str) -> Format:
    def read(text: str) -> Iterator[tuple[int, Cells]]:
        reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True)
        line = 1
        try:
            for row in reader:
                cells = [cell.strip() for cell in row]
                yield line, [] if _is_comment(cells) else cells
                line = reader.line_num + 1
        except csv.Error:  # a field of more than 128 KB, because a quotation mark is not closed
            yield line, ["", ""]

    return read


def _is_comment(cells: Cells) -> bool:
    # A column may be called '#', and a class or a file '#1'.
    return not any(cells) or cells[0].startswith("# ") or (len(cells) == 1 and cells[0].startswith("#"))


FORMATS = (_words, _label_first, *map(_separated, ",;\t"))
"""The published lists are of the first format"""


def read_table(file: Path, text: str, paths: ListPaths) -> Table:
    """Reads a list. Its format and columns are those with which its files are found.

    Lines that begin with # are comments; in CSV and TSV only if a space follows or if they have a single cell, because
    a name may begin with #. A header may name the columns, see `PATH_NAMES`, `LABEL_NAMES` and `SPLIT_NAMES`.
    """
    best: _Reading | None = None
    for split_lines in FORMATS:
        reading = _read_sample(split_lines, file, text, paths)
        if reading is not None and (best is None or reading.rank > best.rank):
            best = reading
        if best is not None and best.hits == 1:
            break
    if best is None:
        return Table([], ROOT)
    if best.problem:
        return Table([], best.pattern, best.problem)
    return Table(list(best.rows(text)), best.pattern)


class _Reading(NamedTuple):
    """One way to read a list."""

    split_lines: Format
    pattern: PathPattern
    hits: float
    """Share of the sample's lines whose files are found"""
    looks: float
    """Share of the sample's lines that name an image file, by its extension"""
    known_names: int
    """Columns that a header names"""
    has_header: bool
    columns: tuple[int, int, int]
    """Of path, label and split; -1 if there is none"""
    problem: str

    @property
    def rank(self) -> tuple[float, float, int, bool]:
        """A larger one is better."""
        return self.hits, self.looks, self.known_names, not self.problem

    def rows(self, text: str) -> Iterator[Row]:
        is_header = self.has_header
        for line, cells in _data_lines(self.split_lines(text)):
            if not is_header:
                yield Row(line, *(cells[column] if 0 <= column < len(cells) else "" for column in self.columns))
            is_header = False


def _data_lines(lines: Iterator[tuple[int, Cells]]) -> Iterator[tuple[int, Cells]]:
    return ((line, cells) for line, cells in lines if cells)


def _read_sample(split_lines: Format, file: Path, text: str, paths: ListPaths) -> _Reading | None:
    """Returns how a format reads a list, or None if it does not fit."""
    sample = [cells for _, cells in islice(_data_lines(split_lines(text)), SAMPLE)]
    if not sample:
        return None
    is_separated, width = split_lines not in FORMATS[:2], len(sample[0])
    if is_separated:
        fitting = [cells for cells in sample if len(cells) == width]
        if width < 2 or 2 * len(fitting) < len(sample):
            return None
        sample = fitting
    header, body = sample[0], sample[1:] or sample

    names = [cell.lower() for cell in header]
    path, label, split = (_find_name(names, known) for known in (PATH_NAMES, LABEL_NAMES, SPLIT_NAMES))
    known_names = sum(column >= 0 for column in (path, label, split))
    is_named = path >= 0 and label >= 0
    candidates = dict.fromkeys([max(path, 0), *(range(width) if is_separated else ())])
    searches = [_search(column, sample, file, paths) for column in candidates]
    best = max(searches, key=lambda search: (search.share, search.looks))  # the first of equal ones

    def is_found(cell: str) -> bool:
        return is_image(Path(cell)) or paths.find(cell, best.pattern) is not None

    has_header = (
        len(sample) > 1 and not is_found(header[best.column]) and (is_named or (is_separated and best.share > 0))
    )
    columns, problem = (best.column, 1, -1), ""
    if is_separated:
        if not has_header:
            known_names, label, split = 0, -1, -1
        label, split, problem = _other_columns(header if has_header else None, body, best.column, label, split)
        columns = best.column, label, split
    return _Reading(split_lines, best.pattern, best.share, best.looks, known_names, has_header, columns, problem)


class _Search(NamedTuple):
    """The files that a column names."""

    column: int
    share: float
    """Of the lines whose files are found"""
    looks: float
    """Share of the lines that name an image file, by its extension"""
    pattern: PathPattern


def _search(column: int, lines: Sequence[Cells], file: Path, paths: ListPaths) -> _Search:
    # In a line of two cells of which the other one is an image, this one is not the path, whatever it names.
    lines_with_path = [cells for cells in lines if len(cells) != 2 or not is_image(Path(cells[1 - column]))]
    texts = [cells[column] for cells in lines_with_path if column < len(cells)]
    pattern = paths.find_pattern(file.parent, texts)
    found = sum(paths.find(text, pattern) is not None for text in texts)
    return _Search(column, found / len(lines), sum(is_image(Path(text)) for text in texts) / len(lines), pattern)


def _find_name(header: Sequence[str], names: Sequence[str]) -> int:
    """The column with the most preferred name, or -1."""
    return next((header.index(name) for name in names if name in header), -1)


def _other_columns(
    header: Cells | None, body: Sequence[Cells], path: int, label: int, split: int
) -> tuple[int, int, str]:
    """Returns the columns of label and split as far as they are not known, and what is wrong."""
    columns = [column for column in range(len(body[0])) if column != path]
    if header is not None:  # without the index that pandas writes
        columns = [column for column in columns if header[column] and not header[column].startswith("Unnamed:")]
    if split < 0 and len(columns) > 1:
        others = (column for column in columns if column != label)
        split = next((column for column in others if all(_is_split(cells[column]) for cells in body)), -1)
    rest = [column for column in columns if column != split]
    if label >= 0 or len(rest) == 1:
        return (label if label >= 0 else rest[0]), split, ""
    names = header or [str(column + 1) for column in range(len(body[0]))]
    return -1, split, f"which of its columns is the class is not clear ({', '.join(names)}); call it 'label' in line 1"


def _is_split(text: str) -> bool:
    name = parse_split_name(text)
    return name is not None and not name.stem
