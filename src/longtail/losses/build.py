"""Settings -> criterion."""

import inspect
from collections.abc import Sequence
from dataclasses import fields

from longtail.config.schema import LossConfig, epoch_of
from longtail.losses.base import REGISTRY, Criterion


def build_criterion(settings: LossConfig, class_counts: Sequence[int], epochs: int, scale: float) -> Criterion:
    """Returns the criterion that the settings describe.

    Args:
        settings: the section ``loss``.
        class_counts: training images of each class, C numbers.
        epochs: of the training.
        scale: of the logits, see ``model.scale``.

    Raises:
        InputError: there is no loss with this name.
    """
    criterion = REGISTRY[settings.name]
    values = {field.name: getattr(settings, field.name) for field in fields(settings)} | {"scale": scale}
    if settings.reweight_after is not None:
        values["reweight_after"] = epoch_of(settings.reweight_after, epochs)
    arguments = list(inspect.signature(criterion).parameters)[1:]  # after class_counts
    return criterion(class_counts, **{name: values[criterion.settings.get(name, name)] for name in arguments})
