"""Long-tailed image recognition with routed, diverse experts.

The public names stand in `__init__.pyi`, once. They are loaded when they are first used, so that importing the package,
and the command line's help, do not import torch.
"""

import warnings
from typing import Any

import lazy_loader

__version__ = "0.2.0"

_RENAMED = {"Classifier": "Predictor", "change_classifier": "retrain_classifier", "recipe": "load_recipe"}
"""Names of version 0.1, which still work in version 0.2"""

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"longtail.{name} is now longtail.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
    return _load(_RENAMED.get(name, name))
