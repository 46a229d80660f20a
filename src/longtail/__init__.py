"""Long-tailed image recognition with routed, diverse experts.

Names are loaded when they are first used, so that importing the package, and the command line's help, need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longtail.api import add_router, change_classifier, evaluate, resume, train
    from longtail.config.recipes import recipe
    from longtail.config.schema import Config
    from longtail.evaluation.metrics import Evaluation
    from longtail.inference import Classifier, predict
    from longtail.models.multi_expert import ExpertOutput, MultiExpert, create_model
    from longtail.models.router import RoutedOutput
    from longtail.runs.model_file import load_model
    from longtail.runs.run import Run
    from longtail.utils.errors import InputError

_HOMES = {
    "Classifier": "longtail.inference",
    "Config": "longtail.config.schema",
    "Evaluation": "longtail.evaluation.metrics",
    "ExpertOutput": "longtail.models.multi_expert",
    "InputError": "longtail.utils.errors",
    "MultiExpert": "longtail.models.multi_expert",
    "RoutedOutput": "longtail.models.router",
    "Run": "longtail.runs.run",
    "add_router": "longtail.api",
    "change_classifier": "longtail.api",
    "create_model": "longtail.models.multi_expert",
    "evaluate": "longtail.api",
    "load_model": "longtail.runs.model_file",
    "predict": "longtail.inference",
    "recipe": "longtail.config.recipes",
    "resume": "longtail.api",
    "train": "longtail.api",
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
