"""The command line. Each module of this package is a command, except those whose names start with an underscore.

The docstring of the module describes the command. ``add_arguments(parser)`` adds its arguments, and ``run(arguments)``
runs it. With ``TAKES_SETTINGS = True``, ``arguments.settings`` holds the settings, ``--section.field value``. Modules
import torch only inside ``run``, so that help and errors are fast.
"""

import argparse
import io
import os
import pkgutil
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NoReturn

from longtail.runtime.process import EXIT_STOPPED, Stopped
from longtail.utils.console import log_to_console, printable
from longtail.utils.errors import InputError

SETTINGS = "Settings: --section.field value. 'longtail train --help' lists them with their defaults."
EXIT_INPUT = 2
EXIT_INTERRUPTED = 130

OUT_OF_MEMORY = (
    "out of memory; reduce training.batch_size, evaluation.batch_size (predict: --batch_size), data.cache_gib or "
    "data.workers, or increase training.accumulation"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
        The exit code: 0; 2 if input is wrong or disk or memory do not suffice; 75 if stopped and saved; 130 if
        interrupted.
    """
    log_to_console()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a name that the terminal cannot encode must not end a training
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        words = sys.argv[1:] if arguments is None else arguments
        parsed, settings = _parser().parse_known_args([_with_underscores(word) for word in words])
        if settings and not parsed.takes_settings:
            raise InputError(f"unknown argument '{settings[0]}'; see 'longtail {parsed.command} --help'")
        parsed.settings = settings
        parsed.run(parsed)
        sys.stdout.flush()  # so that an error of the output is found here
    except InputError as error:
        return _fail(str(error))
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # otherwise Python complains at exit
    except OSError as error:  # a full disk, or a folder that cannot be read or written
        return _fail(f"{error.filename or 'input or output'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        # PyTorch raises RuntimeError or a subclass.
        texts = ("out of memory", "can't allocate memory", "not enough memory")
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in texts):
            raise
        return _fail(OUT_OF_MEMORY)
    except Stopped:
        return _fail("stopped", EXIT_STOPPED)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    return 0


def _with_underscores(word: str) -> str:
    """Returns an option without hyphens in its name: ``--batch-size=8`` as ``--batch_size=8``."""
    option, equals, value = word.partition("=")
    return re.sub(r"(?<=\w)-", "_", option) + equals + value if word.startswith("--") else word


def _fail(message: str, code: int = EXIT_INPUT) -> int:
    if message:  # empty in all processes of a job but one
        print(f"longtail: {printable(message)}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """Errors are one line, and options cannot be abbreviated."""

    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see '{self.prog} --help'")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="longtail",
        description="Long-tailed image recognition with routed, diverse experts.",
        epilog="'longtail train' without arguments trains on built-in data in under a minute.",
    )
    parser.add_argument("--version", action="version", version=f"longtail {version('longtail')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for found in pkgutil.iter_modules(__path__):
        if not found.name.startswith("_"):
            module = import_module(f"{__name__}.{found.name}")
            description, takes_settings = str(module.__doc__), getattr(module, "TAKES_SETTINGS", False)
            command = commands.add_parser(
                found.name,
                help=description.splitlines()[0],
                description=description,
                epilog=SETTINGS if takes_settings else None,
                conflict_handler="resolve",  # train has its own --help
            )
            module.add_arguments(command)
            if takes_settings and command.usage is None:
                command.usage = f"{command.format_usage().removeprefix('usage: ').strip()} [settings]"
            command.set_defaults(run=module.run, parser=command, takes_settings=takes_settings)
    return parser
