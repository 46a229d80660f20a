"""Rebuilds networks of the original code with their golden weights, and compares their outputs with golden values."""

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
# The following need the full golden values.
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
# Only names and shapes of these are stored, because the original was not run.
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
    """A network of the original code and its outputs."""

    keys: dict[str, Any]
    """keys.json: arguments, names and shapes"""

    outputs: golden.Arrays
    """outputs.npz: outputs for `images`"""

    original: dict[str, Tensor]
    """Weights by original name"""

    @property
    def images(self) -> Tensor:
        """(B, 3, H, W)."""
        noise = np.random.default_rng(self.keys["input"]["seed"]).standard_normal(self.keys["input"]["shape"])
        return torch.from_numpy(noise.astype(np.float32))

    @property
    def experts(self) -> list[int] | None:
        """Positions of the experts that run; None: all."""
        used = self.keys.get("args", {}).get("use_experts")
        return None if used is None else [int(expert) for expert in used.split(",")]

    def model(self) -> MultiExpert:
        """Returns a model of longtail with the same weights."""
        options: dict[str, Any] = {}
        if "model_section" in self.keys:  # RIDE-Swin scales in the loss; its golden values are without drop path
            options = {"scale": 1.0, "drop_path_rate": 0.0}
        with skip_init():
            model = create_model(**architecture(self.keys) | options)
        model.load_state_dict(convert_state_dict(self.original), strict=True)
        return model

    def tolerance(self, array: str, smallest: float) -> float:
        """Returns the largest allowed error: five times the original's difference between float32 and float64."""
        mode, _, name = array.partition("_")
        noise = self.keys["float32_minus_float64"].get(mode, {}).get(name)
        return max(smallest, 5 * noise["max_abs_diff"] / noise["max_abs"] if noise else 0.0)


def architecture(keys: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `create_model` that match the arguments of the original network."""
    router: dict[str, Any] = {}
    if section := keys.get("model_section"):
        experts, size = section["NUM_EXPERTS"], keys["case"].split("_")[1]
        narrow = experts > 1 and not section["FORCE_ORIGINAL_FEATURE_DIM"]
        cosine, backbone, num_classes = section["USE_NORMED_LINEAR"], SWIN_SIZES[size], section["NUM_CLASSES"]
        width: Any = "narrow" if narrow else "full"
    else:
        arguments = keys["args"]
        experts, cosine, num_classes = (
            arguments["num_experts"],
            arguments.get("use_norm", False),
            arguments["num_classes"],
        )
        depth = re.fullmatch(r"(ResNe[Xx]?t)(\d+)(EA)?Model", keys["class"])
        assert depth, keys["class"]
        backbone = f"{depth[1].lower()}{depth[2]}{'_32x4d' if 'X' in depth[1] else ''}"
        width = "narrow" if arguments["reduce_dimension"] else "full"
        if "layer2_output_dim" in arguments:
            width = [arguments["layer2_output_dim"], arguments["layer3_output_dim"]]
        if depth[3]:
            shared = arguments.get("share_expert_help_pred_fc", True)
            router = {"router": {"top_choices": arguments["top_choices_num"], "hidden": 16, "shared": shared}}
    return router | {
        "name": backbone,
        "num_classes": num_classes,
        "num_experts": experts,
        "width": width,
        "head": "cosine" if cosine else "linear",
        "scale": 30.0,
        "expert_stages": 1 if keys.get("args", {}).get("share_layer3") else 2,
    }


def our_names(original: list[str]) -> list[str]:
    """Returns the converted name of each original name."""
    # The value of each tensor is its position, which the conversion does not change.
    numbered = {name: torch.full((1, 1), position) for position, name in enumerate(original)}
    ours = {int(position): name for name, position in convert_state_dict(numbered).items()}
    return [ours[position] for position in range(len(original))]


def load(name: str) -> Case:
    """Returns a case with its weights and outputs."""
    keys = golden.table(f"models/{name}/keys.json")
    return Case(keys, golden.arrays(f"models/{name}/outputs.npz"), weights(keys))


def shapes(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns keys.json of a case, and meta tensors of its names and shapes."""
    keys = golden.table(f"models/{name}/keys.json")
    return keys, {key: torch.empty(shape, device="meta") for key, shape, _ in keys["state_dict"]}


def weights(keys: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the weights of the golden values, which follow from names and shapes (NOTES.md, section 1)."""
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
    assert digest.hexdigest() == stored, f"{keys['case']}: other weights than those of the golden values"
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
    """Outputs of our network in one mode, by the names of the golden arrays."""

    values: dict[str, np.ndarray]
    gradient_norms: np.ndarray
    """(P,), in the order of the original's parameters; -1 for a parameter without gradient"""


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
    """Returns the largest difference relative to the largest magnitude."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
