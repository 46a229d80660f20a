"""Rebuilds a network of the original code with its golden weights, and measures how far ours is from it."""

import hashlib
import math
import re
import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import golden
from longtail.models.experts import MultiExpert, create_model
from longtail.models.official import convert_state_dict

CIFAR_CASES = (
    "cifar_resnet32_e1_rd0_un0",
    "cifar_resnet32_e1_rd0_un1",
    "cifar_resnet32_e1_rd1_un0",
    "cifar_resnet32_e1_rd1_un1",
    "cifar_resnet32_e1_l2_40_l3_96_un1",
    "cifar_resnet32_e2_rd1_un1",
    "cifar_resnet32_e3_rd0_un1",
    "cifar_resnet32_e3_rd1_un1",
    "cifar_resnet32_e3_rd1_un1_use02",
    "cifar_resnet32_c10_e3_rd1_un1",
)


class Case(NamedTuple):
    """One network of the original code and what it computes."""

    keys: dict[str, Any]
    """keys.json: how it was built, its names and shapes"""

    outputs: golden.Arrays
    """outputs.npz: what it yields for `images`"""

    official: dict[str, Tensor]
    """its weights, under its own names"""

    @property
    def images(self) -> Tensor:
        """(B, 3, 32, 32)."""
        noise = np.random.default_rng(self.keys["input"]["seed"]).standard_normal(self.keys["input"]["shape"])
        return torch.from_numpy(noise.astype(np.float32))

    @property
    def experts(self) -> list[int] | None:
        """Which experts are switched on; None: all."""
        chosen = self.keys["args"].get("use_experts")
        return None if chosen is None else [int(e) for e in chosen.split(",")]

    def model(self) -> MultiExpert:
        """Our network with the same weights."""
        arguments = self.keys["args"]
        width: Any = "narrow" if arguments["reduce_dimension"] else "full"
        if "layer2_output_dim" in arguments:
            width = [arguments["layer2_output_dim"], arguments["layer3_output_dim"]]
        model = create_model(
            "resnet32",
            arguments["num_classes"],
            arguments["num_experts"],
            width=width,
            head="cosine" if arguments["use_norm"] else "linear",
        )
        model.load_state_dict(convert_state_dict(self.official), strict=True)
        return model


def our_names(official: list[str]) -> list[str]:
    """What the converter makes of each name."""
    # Each tensor carries its position through the conversion.
    numbered = {name: torch.full((1, 1), position) for position, name in enumerate(official)}
    ours = {int(position): name for name, position in convert_state_dict(numbered).items()}
    return [ours[position] for position in range(len(official))]


def load(name: str) -> Case:
    """The case of this name."""
    keys = golden.table(f"models/{name}/keys.json")
    return Case(keys, golden.arrays(f"models/{name}/outputs.npz"), weights(keys))


def weights(keys: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that the golden values were computed with, from names and shapes (NOTES.md, section 1)."""
    names = {name for name, _, _ in keys["state_dict"]}
    digest, state = hashlib.sha256(), {}
    for name, shape, dtype in keys["state_dict"]:
        if dtype != "float32":
            state[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
            continue
        value = _weight(name, shape, is_cosine=name.removesuffix("weight") + "bias" not in names)
        digest.update(value.astype("<f4").tobytes())
        state[name] = torch.from_numpy(value)
    assert digest.hexdigest() == keys["weights_sha256"], f"{keys['case']}: not the weights of the golden values"
    return state


def _weight(name: str, shape: list[int], is_cosine: bool) -> np.ndarray:
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    kind = name.rsplit(".", 1)[-1]
    if kind == "weight" and len(shape) > 1:
        if is_cosine and re.search(r"(^|\.)(linear|head|(linears|heads)\.\d+)\.weight$", name):
            return z
        return z * np.float32(math.sqrt(2 / math.prod(shape[1:])))
    tenth, one = np.float32(0.1), np.float32(1)
    return {
        "weight": one + tenth * z,
        "bias": tenth * z,
        "running_mean": tenth * z,
        "running_var": one + tenth * np.abs(z),
    }[kind]


class Measured(NamedTuple):
    """What our network yields in one mode, under the names of the golden arrays."""

    values: dict[str, np.ndarray]
    gradient_norms: np.ndarray
    """(P,), in the original's order of parameters"""


def measure(case: Case, mode: str, dtype: torch.dtype = torch.float32) -> Measured:
    """Runs our network with the case's weights and images; mode is 'eval' or 'train'."""
    model = case.model().to(dtype).train(mode == "train")
    out = model(case.images.to(dtype), case.experts)
    loss = out.ensemble.double().square().sum()
    loss.backward()
    parameters = dict(model.named_parameters())
    norms = [
        -1.0 if (g := parameters[name].grad) is None else float(g.double().norm())
        for name in our_names(case.keys["params"])
    ]
    values = {
        f"{mode}_logits": out.ensemble,
        f"{mode}_expert_logits": out.logits.transpose(0, 1),
        f"{mode}_expert_feats": out.features.transpose(0, 1),
        f"loss_{mode}": loss,
    }
    if mode == "train":
        running = [name for name, *_ in case.keys["state_dict"] if name.endswith(("running_mean", "running_var"))]
        after = model.state_dict()
        values["train_bn_buffers_after"] = torch.cat([after[name] for name in our_names(running)])
    return Measured({name: value.detach().numpy() for name, value in values.items()}, np.array(norms))


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest magnitude."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
