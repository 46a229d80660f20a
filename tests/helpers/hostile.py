"""Pickles that ask for code to be run."""

import functools
import importlib
import os
import subprocess

import numpy as np
import torch


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


HOSTILE = {
    "posix.system": lambda command: Call(os.system, command),
    "builtins.eval": lambda command: Call(eval, f"__import__('os').system({command!r})"),
    "builtins.exec": lambda command: Call(exec, f"import os; os.system({command!r})"),
    "builtins.getattr": lambda command: Call(getattr, Call(importlib.import_module, "os"), "system"),
    "importlib.import_module": lambda command: Call(importlib.import_module, "os"),
    # What Python 2 called subprocess, as which protocol 2 writes it.
    "commands.check_output": lambda command: Call(subprocess.check_output, command.split()),
    "functools.partial": lambda command: Call(functools.partial, os.system, command),
    "torch.hub.load": lambda command: Call(torch.hub.load, "somebody/something", "model"),
    "numpy.load": lambda command: Call(np.load, "something.npy"),
}
