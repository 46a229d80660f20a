"""The machine: which device to use, and what to record of it."""

import platform
import sys
from importlib.metadata import version
from typing import Any

import torch

from longtail.errors import InputError


def pick_device(name: str) -> torch.device:
    """The device called ``name``; "auto" is the GPU if there is one.

    Raises:
        InputError: no such device here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device is '{name}', which is not here; 'auto' and 'cpu' always work") from error
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, JSON-ready."""
    packages = ("longtail", "torchvision", "numpy", "scikit-learn", "pillow", "safetensors")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in packages} | {"torch": torch.__version__},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
