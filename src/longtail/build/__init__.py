"""`Config` -> the parts of a run."""

from longtail.build.data import eval_loader, load_data, preprocessing, train_loader
from longtail.build.model import architecture, criterion, planned_architecture
from longtail.build.optimization import learning_rate, optimizer

__all__ = [
    "architecture",
    "criterion",
    "eval_loader",
    "learning_rate",
    "load_data",
    "optimizer",
    "planned_architecture",
    "preprocessing",
    "train_loader",
]
