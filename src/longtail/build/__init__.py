"""`Config` -> the parts of a run."""

from longtail.build.data import (
    eval_loader,
    find_bad_images,
    load_data,
    preprocessing,
    shuffled_loader,
    train_loader,
    views_loader,
)
from longtail.build.model import (
    architecture,
    classifier_options,
    criterion,
    experts_task,
    for_training,
    learned_prior,
    planned_architecture,
    router_options,
)
from longtail.build.optimization import (
    classifier_learning_rate,
    classifier_optimizer,
    learning_rate,
    optimizer,
    router_learning_rate,
    router_optimizer,
)

__all__ = [
    "architecture",
    "classifier_learning_rate",
    "classifier_optimizer",
    "classifier_options",
    "criterion",
    "eval_loader",
    "experts_task",
    "find_bad_images",
    "for_training",
    "learned_prior",
    "learning_rate",
    "load_data",
    "optimizer",
    "planned_architecture",
    "preprocessing",
    "router_learning_rate",
    "router_optimizer",
    "router_options",
    "shuffled_loader",
    "train_loader",
    "views_loader",
]
