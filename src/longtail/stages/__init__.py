"""The stages of training: the experts, other classifiers on their features, and their router."""

from longtail.stages.classifier import train_classifier
from longtail.stages.experts import Experts
from longtail.stages.router import set_threshold, train_router
from longtail.stages.workplace import Workplace

__all__ = ["Experts", "Workplace", "set_threshold", "train_classifier", "train_router"]
