"""Pickles that call functions when they are loaded."""

import functools
import importlib
import os
import subprocess

import numpy as np
import torch


class Call:
    """Is pickled as a function call."""

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
    # Protocol 2 writes the Python 2 name of subprocess.
    "commands.check_output": lambda command: Call(subprocess.check_output, command.split()),
    "functools.partial": lambda command: Call(functools.partial, os.system, command),
    "torch.hub.load": lambda command: Call(torch.hub.load, "somebody/something", "model"),
    "numpy.load": lambda command: Call(np.load, "something.npy"),
}
