"""Checks of goals and settings before anything is computed."""

from collections.abc import Mapping

from longtail.config.schema import ClassifierConfig, RouterConfig
from longtail.data.loaders import Loader
from longtail.evaluation.flops import cost
from longtail.evaluation.routing import parse_budget
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import EvalSplit
from longtail.runs.model_file import ModelMetadata
from longtail.utils.errors import InputError
from longtail.utils.format import macs

Loaders = Mapping[EvalSplit, Loader]


def check_threshold_goal(settings: RouterConfig, loaders: Loaders) -> None:
    """Checks that a threshold can be chosen for the goal, if there is one."""
    if settings.compute_budget is not None:
        parse_budget(str(settings.compute_budget))
    if settings.has_goal and "val" not in loaders:
        raise InputError(
            "the router's threshold is chosen on validation images, and there are none. Train with data.val_fraction, "
            "or data.val_spare if the long tail is made from a larger set; or choose no threshold: "
            "router.max_accuracy_drop and router.compute_budget null"
        )


def check_tau(settings: ClassifierConfig, loaders: Loaders) -> None:
    """Checks that tau can be chosen, if it is not set."""
    if settings.method == "tau" and settings.tau is None and "val" not in loaders:
        raise InputError(
            "tau is chosen on validation images, and there are none. Train with data.val_fraction, or data.val_spare "
            "if the long tail is made from a larger set; or set it: classifier.tau 1"
        )


def check_budget(
    compute_budget: float | str | None, model: MultiExpert, metadata: ModelMetadata, num_views: int
) -> None:
    """Checks that a budget suffices for the first expert."""
    if compute_budget is None:
        return
    budget, first = parse_budget(str(compute_budget)), cost(model, metadata.image_size).times(num_views).prefix(1)
    if budget.amount < (first if budget.unit == "MACs" else 1):
        raise InputError(
            f"router.compute_budget is {compute_budget}, less than the first expert's cost, {macs(first)} MACs"
        )
