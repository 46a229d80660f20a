"""How text reaches the user: lines through `logging`, tables and progress bars through one rich console.

Nothing is shown by default. The command line calls `log_to_console`, and so can a Python program.
"""

import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import track

T = TypeVar("T")

_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
"""Classes of characters that change the direction of the text after them"""


class _Console(Console):
    """If the reader of the output, such as head, has closed it, rich would end the process with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Leaves the error to the caller."""
        raise BrokenPipeError


_state = {"console": Console(quiet=True)}


def console() -> Console:
    """The console for tables and progress bars; quiet unless `log_to_console` was called."""
    return _state["console"]


def show(renderable: RenderableType) -> None:
    """Prints a table."""
    console().print(renderable)


def with_bar(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Iterates with a progress bar, which disappears at the end; without one where the console is not a terminal.

    Args:
        items: to iterate over.
        what: is being done, to the left of the bar.
        total: number of the items, if they have no length.
    """
    return track(items, what, total, console=console(), transient=True, disable=not console().is_terminal)


def log_to_console(target: Console | None = None) -> None:
    """Shows the log lines, tables and progress bars of longtail from now on.

    Args:
        target: where to; standard output by default.
    """
    _state["console"] = target or _Console()
    logger = logging.getLogger("longtail")
    logger.handlers[:] = [_ConsoleHandler()]
    logger.setLevel(logging.INFO)


def mute() -> None:
    """Shows errors alone: for the processes of a job that do not speak for all."""
    _state["console"] = Console(quiet=True)
    logging.getLogger("longtail").setLevel(logging.ERROR)


def without_notes() -> AbstractContextManager[None]:
    """Within it, only warnings and errors are logged: for what is said again later."""
    return log_level(logging.WARNING, "longtail")


@contextmanager
def log_level(level: int, *names: str) -> Iterator[None]:
    """Within it, loggers have another level."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level_before in zip(loggers, before, strict=True):
            logger.setLevel(level_before)


def printable(text: str) -> str:
    """The text with control characters made visible: file names may colour or clear a terminal, or reverse its text."""
    escape: Callable[[str], str] = lambda c: ascii(c)[1:-1]  # noqa: E731
    return "".join(escape(c) if _is_control(c) and c != "\n" else c for c in text)


def _is_control(c: str) -> bool:
    return unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in _DIRECTIONS


class _ConsoleHandler(logging.Handler):
    """Prints a record as one line: as it is, or after its level from warnings on."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        # Names may hold what Rich takes for markup, and a command or a path must not be broken into lines.
        console().print(prefix + printable(record.getMessage()), markup=False, highlight=False, soft_wrap=True)
