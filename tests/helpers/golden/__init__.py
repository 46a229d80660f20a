"""Golden values: results of the original RIDE code.

The full set is in a folder ``shared/golden`` next to the repository. The repository has a small part of it, under the
same names, so that the package is compared with the original on any machine. Tests of values that only the full set has
are skipped without it. ``LONGTAIL_GOLDEN`` names another folder.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SMALL = Path(__file__).parents[2] / "golden"
FULL = SMALL.parents[2] / "shared" / "golden"
ROOT = Path(os.environ.get("LONGTAIL_GOLDEN") or (FULL if FULL.is_dir() else SMALL))


class Arrays(dict[str, np.ndarray]):
    """The arrays of an npz file by name."""

    def __missing__(self, name: str) -> np.ndarray:
        return _absent(f"array '{name}'")

    def under(self, folder: str) -> "Arrays":
        """The arrays whose name starts with ``folder/``, by the rest of their name."""
        return Arrays({name.removeprefix(folder + "/"): a for name, a in self.items() if name.startswith(folder + "/")})


def arrays(name: str) -> Arrays:
    """Returns the arrays in a file such as ``losses/ride_losses.npz``."""
    with np.load(path(name)) as file:
        return Arrays(file)


def table(name: str) -> Any:
    """Returns the content of a file such as ``losses/ride_losses.json``."""
    return json.loads(path(name).read_text())


def path(name: str) -> Path:
    """Returns the path of a file."""
    found = ROOT / name
    return found if found.is_file() else _absent(name)


def _absent(what: str) -> Any:
    # In the full set, a missing value is an error.
    assert ROOT == SMALL or ROOT.samefile(SMALL), f"{ROOT} lacks {what}"
    pytest.skip(f"needs the full golden values in {FULL}")
