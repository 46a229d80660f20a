"""The one kind of error that is the user's to mend."""

from collections.abc import Sequence
from difflib import get_close_matches


class InputError(ValueError):
    """Something that was given is wrong; the message names it and says what would be right.

    The command line prints it as one line and exits with code 2.
    """


def did_you_mean(word: str, words: Sequence[str]) -> str:
    """The end of a message about an unknown word: "; did you mean 'x'?", or nothing if none is near."""
    near = get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


def one_line(text: str) -> str:
    """The text with what ends lines made visible: names of files may hold it."""
    return text.replace("\n", "\\n").replace("\r", "\\r")


def raise_all(problems: Sequence[str], most: int = 20) -> None:
    """Raises one error that lists the problems, a line each, in at most so many lines, if there are any."""
    if problems:
        shown = list(problems) if len(problems) <= most else problems[: most - 1]
        hidden = len(problems) - len(shown)
        raise InputError("\n".join([*map(one_line, shown), *([f"and {hidden:,} more"] if hidden else [])]))
