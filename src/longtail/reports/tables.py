"""Tables of results: one class that the terminal and Markdown files share, and the table of each kind of result."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from longtail.utils.format import escape


@dataclass(frozen=True)
class ReportTable:
    """A table of texts. ``console.show(table)`` prints it; `markdown` returns its Markdown."""

    header: Sequence[str]

    rows: Sequence[Sequence[str]]

    title: str = ""
    """Above the table in the terminal"""

    notes: Sequence[str] = ()
    """One line each, below the table in the terminal"""

    text_columns: int = 1
    """The first columns hold text, which is aligned left; numbers are aligned right"""

    bold_row: int | None = None
    """The most important row, from 0"""

    sections: Sequence[int] = ()
    """Rows, from 0, above which the terminal shows a line"""

    def __rich__(self) -> Table:
        """The table for the terminal."""
        table = Table(
            title=Text(self.title, style="table.title") if self.title else None,
            caption=Text("\n".join(self.notes), style="table.caption") if self.notes else None,
            box=box.SIMPLE_HEAD,
            title_justify="left",
            caption_justify="left",
            collapse_padding=True,
            pad_edge=False,
        )
        for position, name in enumerate(self.header):
            if position < self.text_columns:
                table.add_column(name, vertical="bottom")
            else:  # "expert 1" takes two lines, so that nine columns fit into 80 characters
                table.add_column(name.replace(" ", "\n"), justify="right", vertical="bottom")
        for position, row in enumerate(self.rows):
            if position in self.sections:
                table.add_section()
            table.add_row(*map(Text, row), style="bold" if position == self.bold_row else "")
        return table

    def markdown(self) -> str:
        """Returns the header and the rows, without title and notes. Text columns are escaped."""
        texts = self.text_columns
        lines = [
            [*map(escape, self.header[:texts]), *self.header[texts:]],
            ["---"] * texts + ["---:"] * (len(self.header) - texts),
            *([*map(escape, row[:texts]), *row[texts:]] for row in self.rows),
        ]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
