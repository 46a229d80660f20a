"""Errors that the user can fix."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches


class InputError(ValueError):
    """Wrong input. The message names the value and where it is, and says what to do.

    The command line prints it as one line and exits with code 2.
    """


def did_you_mean(word: str, words: Sequence[str] | Mapping[str, str]) -> str:
    """Returns the end of a message about an unknown word: "; did you mean 'x'?", or "" if no word is similar.

    Args:
        word: that is unknown.
        words: that are known, or what each of them stands for.
    """
    similar = get_close_matches(word, words, n=1, cutoff=0.5)
    meant = [words[found] if isinstance(words, Mapping) else found for found in similar]
    return f"; did you mean '{meant[0]}'?" if meant else ""


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Checks that a value is one of several words.

    Raises:
        InputError: it is another one; names ``name``.
    """
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise InputError(f"{name} is {value!r}; it must be one of {', '.join(choices)}{hint}")


def one_line(text: str) -> str:
    r"""Returns a text with its line ends written as \n and \r; file names may contain line ends."""
    return text.replace("\n", "\\n").replace("\r", "\\r")


def join_problems(problems: Sequence[str], max_lines: int = 20) -> str:
    """Returns a text with a line for each problem, at most ``max_lines``."""
    shown = list(problems if len(problems) <= max_lines else problems[: max_lines - 1])
    hidden = len(problems) - len(shown)
    return "\n".join([*map(one_line, shown), *([f"and {hidden:,} more"] if hidden else [])])


def raise_all(problems: Sequence[str], max_lines: int = 20) -> None:
    """Raises one `InputError` with a line for each problem, at most ``max_lines``; returns if there are none."""
    if problems:
        raise InputError(join_problems(problems, max_lines))
