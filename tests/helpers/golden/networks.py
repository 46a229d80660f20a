"""Rebuilds a network of the original code with its golden weights, and measures how far ours is from it."""

import hashlib
import math
import re
import zlib
from typing import Any, NamedTuple

import numpy as np
import torch
from helpers import golden
from torch import Tensor

from longtail.interop.original.names import convert_state_dict
from longtail.models.initialisation import skip_init
from longtail.models.multi_expert import MultiExpert, create_model

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
# The rest need the whole golden values.
RESNET10_CASES = (
    "imagenet_resnet10_e1_rd0_un0",
    "imagenet_resnet10_e1_rd1_un1",
    "imagenet_resnet10_e3_rd0_un1",
    "imagenet_resnet10_e3_rd1_un0",
    "imagenet_resnet10_e3_rd1_un1",
    "imagenet_resnet10_e3_share3",
)
LARGE_CASES = (
    "imagenet_resnet50_e1_rd1_un1",
    "imagenet_resnext50_e1_rd1_un0",
    "swin_tiny_e1_ce",
    "swin_tiny_e2_ride",
)
SLOW_CASES = (
    "imagenet_resnet50_e3_rd1_un1",
    "imagenet_resnext50_e3_rd1_un1",
    "imagenet_resnet101_e1_rd1_un1",
    "imagenet_resnet152_e1_rd1_un1",
    "imagenet_resnext152_e1_rd1_un0",
    "swin_tiny_e1_lt",
    "swin_tiny_e1_lt_nobranch",
    "swin_tiny_e2_origdim",
    "swin_small_e1_ce",
    "swin_small_e1_lt",
    "swin_small_e1_lt_nobranch",
    "swin_small_e2_ride",
)
# Only names and shapes are stored of these: the original was not run.
COUNTED_CASES = (
    "imagenet_resnet50_e2_rd1_un1",
    "imagenet_resnet50_e6_rd1_un1",
    "imagenet_resnext50_e2_rd1_un1",
    "imagenet_resnext50_e6_rd1_un1",
    "inat18_resnet50_e3_rd1_un1",
    "inat18_resnet50_e4_rd1_un1",
)
ROUTED_CASES = (
    "cifar_resnet32ea_e3",
    "cifar_resnet32ea_e3_noshare",
    "cifar_resnet32ea_e4",
    "imagenet_resnet10ea_e3",
    "imagenet_resnet50ea_e3",
)
RUN_CASES = CIFAR_CASES + RESNET10_CASES + LARGE_CASES + SLOW_CASES

SWIN_SIZES = {"tiny": "swin_tiny_patch4_window7_224", "small": "swin_small_patch4_window7_224"}


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
        """(B, 3, H, W)."""
        noise = np.random.default_rng(self.keys["input"]["seed"]).standard_normal(self.keys["input"]["shape"])
        return torch.from_numpy(noise.astype(np.float32))

    @property
    def experts(self) -> list[int] | None:
        """Which experts are switched on; None: all."""
        chosen = self.keys.get("args", {}).get("use_experts")
        return None if chosen is None else [int(e) for e in chosen.split(",")]

    def model(self) -> MultiExpert:
        """Our network with the same weights."""
        options: dict[str, Any] = {}
        if "model_section" in self.keys:  # RIDE-Swin scales in the loss; and its values are without drop path
            options = {"scale": 1.0, "drop_path_rate": 0.0}
        with skip_init():
            model = create_model(**architecture(self.keys) | options)
        model.load_state_dict(convert_state_dict(self.official), strict=True)
        return model

    def tolerance(self, array: str, smallest: float) -> float:
        """How far off float32 may be: five times as far as the original's own float32 is from its float64."""
        mode, _, name = array.partition("_")
        noise = self.keys["float32_minus_float64"].get(mode, {}).get(name)
        return max(smallest, 5 * noise["max_abs_diff"] / noise["max_abs"] if noise else 0.0)


def architecture(keys: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `create_model` that say the same as those the original was built with."""
    router: dict[str, Any] = {}
    if section := keys.get("model_section"):
        experts, size = section["NUM_EXPERTS"], keys["case"].split("_")[1]
        narrow = experts > 1 and not section["FORCE_ORIGINAL_FEATURE_DIM"]
        cosine, backbone, num_classes = section["USE_NORMED_LINEAR"], SWIN_SIZES[size], section["NUM_CLASSES"]
        width: Any = "narrow" if narrow else "full"
    else:
        given = keys["args"]
        experts, cosine, num_classes = given["num_experts"], given.get("use_norm", False), given["num_classes"]
        depth = re.fullmatch(r"(ResNe[Xx]?t)(\d+)(EA)?Model", keys["class"])
        assert depth, keys["class"]
        backbone = f"{depth[1].lower()}{depth[2]}{'_32x4d' if 'X' in depth[1] else ''}"
        width = "narrow" if given["reduce_dimension"] else "full"
        if "layer2_output_dim" in given:
            width = [given["layer2_output_dim"], given["layer3_output_dim"]]
        if depth[3]:
            shared = given.get("share_expert_help_pred_fc", True)
            router = {"router": {"top_choices": given["top_choices_num"], "hidden": 16, "shared": shared}}
    return router | {
        "name": backbone,
        "num_classes": num_classes,
        "num_experts": experts,
        "width": width,
        "head": "cosine" if cosine else "linear",
        "scale": 30.0,
        "expert_stages": 1 if keys.get("args", {}).get("share_layer3") else 2,
    }


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


def shapes(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """keys.json of any case, and tensors of its names and shapes that hold nothing."""
    keys = golden.table(f"models/{name}/keys.json")
    return keys, {key: torch.empty(shape, device="meta") for key, shape, _ in keys["state_dict"]}


def weights(keys: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that the golden values were computed with, from names and shapes (NOTES.md, section 1)."""
    names = {name for name, _, _ in keys["state_dict"]}
    overrides = keys.get("overrides", {})
    digest, state = hashlib.sha256(), {}
    for name, shape, dtype in keys["state_dict"]:
        if dtype != "float32" or name.endswith("attn_mask"):
            state[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
            continue
        if name in overrides:
            value = np.full(shape, overrides[name], np.float32)
        else:
            value = _weight(name, shape, is_cosine=name.removesuffix("weight") + "bias" not in names)
        digest.update(value.astype("<f4").tobytes())
        state[name] = torch.from_numpy(value)
    stored = keys["weights_sha256_with_overrides" if overrides else "weights_sha256"]
    assert digest.hexdigest() == stored, f"{keys['case']}: not the weights of the golden values"
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
        "relative_position_bias_table": np.float32(0.02) * z,
    }[kind]


class Measured(NamedTuple):
    """What our network yields in one mode, under the names of the golden arrays."""

    values: dict[str, np.ndarray]
    gradient_norms: np.ndarray
    """(P,), in the original's order of parameters; -1 where there is none"""


def measure(case: Case, mode: str, dtype: torch.dtype = torch.float32, gradients: bool = True) -> Measured:
    """Runs our network with the case's weights and images; mode is 'eval' or 'train'."""
    model = case.model().to(dtype).train(mode == "train")
    with torch.set_grad_enabled(gradients):
        out = model(case.images.to(dtype), case.experts)
        loss = out.ensemble.double().square().sum()
    if gradients:
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
    if mode == "train" and "train_bn_buffers_after" in case.outputs:
        running = [name for name, *_ in case.keys["state_dict"] if name.endswith(("running_mean", "running_var"))]
        after = model.state_dict()
        values["train_bn_buffers_after"] = torch.cat([after[name] for name in our_names(running)])
    return Measured({name: value.detach().numpy() for name, value in values.items()}, np.array(norms))


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest magnitude."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
