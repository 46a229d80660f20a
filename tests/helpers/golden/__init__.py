"""Golden values: what the original RIDE code computes, kept as figures.

The whole set lies in a folder ``shared/golden`` beside the repository. A small part of it, with the same names, is kept
here, so that the package is compared with the original on any machine. What only the whole set has is skipped
where that is absent. ``LONGTAIL_GOLDEN`` names another folder.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SMALL = Path(__file__).parents[2] / "golden"
WHOLE = SMALL.parents[2] / "shared" / "golden"
ROOT = Path(os.environ.get("LONGTAIL_GOLDEN") or (WHOLE if WHOLE.is_dir() else SMALL))


class Arrays(dict[str, np.ndarray]):
    """The arrays of an npz file by name."""

    def __missing__(self, name: str) -> np.ndarray:
        return _absent(f"array '{name}'")

    def under(self, folder: str) -> "Arrays":
        """Those whose name starts with ``folder/``, without it."""
        return Arrays({name.removeprefix(folder + "/"): a for name, a in self.items() if name.startswith(folder + "/")})


def arrays(name: str) -> Arrays:
    """The arrays in a file such as ``losses/ride_losses.npz``."""
    with np.load(path(name)) as file:
        return Arrays(file)


def table(name: str) -> Any:
    """What a file such as ``losses/ride_losses.json`` holds."""
    return json.loads(path(name).read_text())


def path(name: str) -> Path:
    """Where a file lies."""
    found = ROOT / name
    return found if found.is_file() else _absent(name)


def _absent(what: str) -> Any:
    # The whole set must be whole: there, a missing value is an error and not a reason to skip.
    assert ROOT == SMALL or ROOT.samefile(SMALL), f"{ROOT} lacks {what}"
    pytest.skip(f"needs the whole golden values in {WHOLE}")
