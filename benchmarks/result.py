"""Where a benchmark's table goes, with what it was measured by."""

import os
import platform
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import timm
import torch

FOLDER = Path(__file__).resolve().parent / "results"


def report(lines: Iterable[str], name: str, note: str = "") -> None:
    """Prints lines as they come, and writes them to a file of that name under a header that says how they came about.

    Args:
        lines: the table.
        name: such as ``cut.txt``.
        note: anything else that the reader should know, such as that the machine was busy.
    """
    script = Path(sys.argv[0]).resolve().relative_to(FOLDER.parent.parent)
    command = shlex.join(["python", script.as_posix(), *sys.argv[1:]])
    versions = f"torch {torch.__version__}, timm {timm.__version__}, Python {platform.python_version()}"
    threads = f"{torch.get_num_threads()} CPU thread{'s' * (torch.get_num_threads() > 1)} of {os.cpu_count()} cores"
    text = [command, versions, f"{_processor()}, {threads}", *([note] if note else []), ""]
    print(*text, sep="\n")
    for line in lines:
        print(line, flush=True)
        text.append(line)
    (FOLDER / name).write_text("\n".join(text) + "\n")


def _processor() -> str:
    names = Path("/proc/cpuinfo")
    lines = names.read_text().splitlines() if names.is_file() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.processor() or platform.machine()
