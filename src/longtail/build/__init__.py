"""`Config` -> the parts of a run."""

from longtail.build.data import eval_loader, load_data, preprocessing, train_loader
from longtail.build.model import architecture, criterion
from longtail.build.optimization import learning_rate, optimizer

__all__ = [
    "architecture",
    "criterion",
    "eval_loader",
    "learning_rate",
    "load_data",
    "optimizer",
    "preprocessing",
    "train_loader",
]
