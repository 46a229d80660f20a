"""Long-tailed image recognition with routed, diverse experts.

Names are loaded when they are first used, so that importing the package, and the command line's help, need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtail.config import Config
    from longtail.errors import InputError
    from longtail.metrics import Evaluation
    from longtail.model_file import load_model
    from longtail.models.experts import ExpertOutput, MultiExpert, create_model
    from longtail.models.routing import RoutedOutput
    from longtail.pipeline import add_router, change_classifier, evaluate, resume, train
    from longtail.prediction import Classifier, predict
    from longtail.run import Run
    from longtail.settings import recipe

_HOMES = {
    "Classifier": "longtail.prediction",
    "Config": "longtail.config",
    "Evaluation": "longtail.metrics",
    "ExpertOutput": "longtail.models.experts",
    "InputError": "longtail.errors",
    "MultiExpert": "longtail.models.experts",
    "RoutedOutput": "longtail.models.routing",
    "Run": "longtail.run",
    "add_router": "longtail.pipeline",
    "change_classifier": "longtail.pipeline",
    "create_model": "longtail.models.experts",
    "evaluate": "longtail.pipeline",
    "load_model": "longtail.model_file",
    "predict": "longtail.prediction",
    "recipe": "longtail.settings",
    "resume": "longtail.pipeline",
    "train": "longtail.pipeline",
}

__all__ = [
    "Classifier",
    "Config",
    "Evaluation",
    "ExpertOutput",
    "InputError",
    "MultiExpert",
    "RoutedOutput",
    "Run",
    "add_router",
    "change_classifier",
    "create_model",
    "evaluate",
    "load_model",
    "predict",
    "recipe",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'longtail' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
