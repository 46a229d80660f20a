"""Checkpoints of the original RIDE repository, in our names."""

import re
from collections.abc import Mapping

from torch import Tensor

from longtail.errors import InputError

# Each of their names matches one rule at most; the second half is what we call the same tensor.
CIFAR_NAMES = (
    (r"(conv1|bn1|layer1)\.(.+)", r"trunk.\1.\2"),
    (r"(layer[23])\.(.+)", r"branches.0.\1.\2"),
    (r"(layer[23])s\.(\d+)\.(.+)", r"branches.\2.\1.\3"),
    (r"linear\.(weight|bias)", r"heads.0.\1"),
    (r"linears\.(\d+)\.(weight|bias)", r"heads.\1.\2"),
)


def convert_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of a CIFAR checkpoint of the original repository to those of `MultiExpert`.

    Cosine classifiers, which lie there as (features, classes) and have no bias, are turned to (classes, features).

    Args:
        official: its ``state_dict``, of one expert or several, with or without DataParallel's ``module.``.

    Raises:
        InputError: some names are not those of an original CIFAR network.
    """
    names = {name: _rename(name) for name in official}
    if unknown := [name for name, ours in names.items() if ours is None]:
        raise InputError(f"not an original CIFAR checkpoint, these names are unknown: {', '.join(unknown)}")
    converted = {ours: official[name] for name, ours in names.items() if ours is not None}
    for name, weight in converted.items():
        if re.fullmatch(r"heads\.\d+\.weight", name) and name.replace("weight", "bias") not in converted:
            converted[name] = weight.T.contiguous()
    return converted


def _rename(name: str) -> str | None:
    for theirs, ours in CIFAR_NAMES:
        if match := re.fullmatch(r"(?:module\.)?backbone\." + theirs, name):
            return match.expand(ours)
    return None
