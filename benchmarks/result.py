"""Prints the table of a benchmark, and writes it to a file together with the command, the versions and the machine."""

import os
import platform
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import timm
import torch

from longtail.runtime.process import processor_name

FOLDER = Path(__file__).parent / "results"


def report(lines: Iterable[str], name: str, note: str = "") -> None:
    """Prints a table line by line, and writes it to a file under a header with command, versions and machine.

    Args:
        lines: the table.
        name: name of the file in `FOLDER`, such as ``cut.txt``.
        note: further text for the header, for example that the machine was busy.
    """
    script = Path(sys.argv[0]).resolve().relative_to(Path(__file__).resolve().parents[1])
    command = shlex.join(["python", script.as_posix(), *sys.argv[1:]])
    versions = f"torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}"
    threads = f"{torch.get_num_threads()} CPU thread{'s' * (torch.get_num_threads() > 1)} of {os.cpu_count()} cores"
    gpu = [torch.cuda.get_device_name()] if torch.cuda.is_available() else []
    text = [command, versions, ", ".join([processor_name(), threads, *gpu]), *([note] if note else []), ""]
    print(*text, sep="\n")
    for line in lines:
        print(line, flush=True)
        text.append(line)
    (FOLDER / name).write_text("\n".join(text) + "\n")
