"""The device, its precision, and a record of the machine."""

import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch

from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.runtime.process import processor_info, processor_name
from longtail.utils.choices import Precision
from longtail.utils.errors import InputError

logger = logging.getLogger(__name__)

_TYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Where and how training is computed."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable
    precision: Precision = "float32"
    """Of matrix products and convolutions in training; weights, losses and gradient sums stay float32"""

    group: Group = SINGLE_PROCESS

    @property
    def can_capture(self) -> bool:
        """Whether steps can be captured as CUDA graphs. fp16 reads the scale of the loss after each step."""
        return self.device.type == "cuda" and self.group.size == 1 and self.precision != "fp16"

    @contextmanager
    def tf32(self, allowed: bool) -> Iterator[None]:
        """Within it, float32 products on an NVIDIA GPU use TF32 (10-bit factors), or not."""
        if self.device.type != "cuda":
            yield
            return
        backends: Any = torch.backends  # not all of it is typed
        newer = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]
        before = [setting.fp32_precision for setting in newer]
        try:
            older = torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32
        except RuntimeError:  # the caller uses torch's newer settings, and then the older ones are errors
            older = None
            for setting in newer[:3]:
                setting.fp32_precision = "tf32" if allowed else "ieee"
        else:  # torch.compile reads the older ones
            torch.set_float32_matmul_precision("high" if allowed else "highest")
            backends.cudnn.allow_tf32 = allowed
        try:
            yield
        finally:
            if older is not None:
                torch.set_float32_matmul_precision(older[0])
                backends.cudnn.allow_tf32 = older[1]
            for setting, value in zip(newer, before, strict=True):  # also "none", which the older ones do not have
                setting.fp32_precision = value

    def autocast(self) -> AbstractContextManager[Any]:
        """Within it, torch computes suitable operations in the lower precision."""
        enabled = self.precision != "float32"
        return torch.autocast(self.device.type, _TYPES[self.precision] if enabled else None, enabled=enabled)

    def scaler(self) -> torch.amp.GradScaler:  # type: ignore[name-defined]
        """Scales the loss so that small fp16 gradients do not vanish; does nothing in other precisions."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")  # type: ignore[attr-defined]


def pick_device(name: str) -> torch.device:
    """Returns the device called ``name``; "auto" is the GPU, if any. With several processes each has its own.

    Raises:
        InputError: no such device here.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device is '{name}', which is not on this machine; 'auto' and 'cpu' always work") from error
    return device


def warn_slow_precision(device: torch.device, precision: Precision) -> None:
    """Warns if a processor computes a precision without instructions for it."""
    instructions = {"bf16": ("avx512_bf16", "amx_bf16", "bf16"), "fp16": ("avx512_fp16", "amx_fp16", "fphp")}
    if device.type != "cpu" or precision == "float32":
        return
    flags = set(processor_info("flags", "Features").split())
    if flags and not flags.intersection(instructions[precision]):
        logger.warning(
            "This processor has no instructions for %s, which is several times slower here than float32", precision
        )


def environment(device: torch.device, num_processes: int) -> dict[str, Any]:
    """Returns command, versions and hardware, JSON-ready."""
    packages = ("longtail", "torchvision", "numpy", "scikit-learn", "pillow", "safetensors")
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "processes": num_processes,
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in packages} | {"torch": torch.__version__},
    }
