"""Outputs of our routed networks for the golden weights and images."""

from typing import NamedTuple

import numpy as np
import torch
from helpers.golden.networks import Case, our_names

from longtail.losses import router_loss, router_targets

TAGS = ("trainhook", "trainhook_targets_b", "trainnohook", "trainnohook_targets_b")
"""Mode of the original's batch norms when it trained a router ("hook": as in evaluation), and its labels"""


class Routed(NamedTuple):
    """Outputs of a network with a router, by the names of the golden arrays."""

    values: dict[str, np.ndarray]

    gradient_norms: dict[str, np.ndarray]
    """For each of `TAGS`: (P,), in the order of the original's parameters; -1 for a parameter without gradient"""


def measure_routed(case: Case) -> Routed:
    """Routes the images, and computes the router's loss and gradients for each of `TAGS`; the experts are frozen."""
    model = case.model().eval()
    images, names = case.images, our_names(case.keys["params"])
    with torch.no_grad():
        out, routed, forced = model(images), model.route(images), model.route(images, threshold=-1)
        in_training = model.train()(images)
    values = {
        "eval_logits": routed.logits,
        "eval_num_experts": routed.experts_used[:, None],
        "forceall_logits": forced.logits,
        "forceall_num_experts": forced.experts_used[:, None],
        "forceall_expert_logits": out.logits.transpose(0, 1),
        "forceall_expert_feats": out.features.transpose(0, 1),
        "forceall_router_outputs": model.router(out.logits, out.features).T,
    }
    norms = {}
    for tag in TAGS:
        output = in_training if tag.startswith("trainnohook") else out
        labels = torch.from_numpy(case.outputs["targets_b" if tag.endswith("targets_b") else "targets"])
        model.zero_grad()
        router_logits = model.router(output.logits, output.features)
        loss = router_loss(router_logits, router_targets(output.logits, labels), case.keys["args"]["pos_weight"])
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        norms[tag] = np.array([-1.0 if (g := gradients[name]) is None else float(g.norm()) for name in names])
        values |= {
            f"{tag}_output": output.ensemble,
            f"{tag}_router_outputs": router_logits.T,
            f"loss_{tag}": loss[None],
        }
    return Routed({name: value.detach().numpy() for name, value in values.items()}, norms)
