"""Checkpoints of the original RIDE and RIDE-Swin repositories, in our names."""

import re
from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from longtail.utils.errors import InputError

NUM_BRANCHED = 2
"""Stages that become a single expert's own. The names tell only where several experts part."""

MOST_SHOWN = 20

# Each of their names matches one rule at most. The second half is what we call the same tensor: {owner} is the trunk or
# the expert's branch, {next} the stage after. The down-sampling that the original Swin has at the end of a stage is at
# the beginning of the next one in timm's.
RULES = (
    (r"(?P<rest>(conv1|bn1)\..+)", "trunk.{rest}"),
    (r"layer(?P<stage>\d)\.(?P<rest>.+)", "{owner}.layer{stage}.{rest}"),
    (r"layer(?P<stage>\d)s\.(?P<expert>\d+)\.(?P<rest>.+)", "{owner}.layer{stage}.{rest}"),
    (r"(?:linear|head)\.(?P<rest>weight|bias)", "heads.0.{rest}"),
    (r"(?:linears|heads)\.(?P<expert>\d+)\.(?P<rest>weight|bias)", "heads.{expert}.{rest}"),
    (r"expert_help_pred_hidden_fcs\.(?P<expert>\d+)\.(?P<rest>weight|bias)", "router.hidden.{expert}.{rest}"),
    (r"expert_help_pred_fc\.(?P<rest>weight|bias)", "router.output.0.{rest}"),
    (r"expert_help_pred_fcs\.(?P<expert>\d+)\.(?P<rest>weight|bias)", "router.output.{expert}.{rest}"),
    (r"patch_embed\.(?P<rest>.+)", "trunk.patch_embed.{rest}"),
    (r"layers\.(?P<stage>\d)\.(branches\.(?P<expert>\d+)\.)?(?P<rest>blocks\..+)", "{owner}.layers.{stage}.{rest}"),
    (r"layers\.(?P<stage>\d)\.(branches\.(?P<expert>\d+)\.)?(?P<rest>downsample\..+)", "{owner}.layers.{next}.{rest}"),
    (r"norm\.(?P<rest>weight|bias)", "neck.norm.{rest}"),
)

CONSTANTS = re.compile(r".*\.(relative_position_index|attn_mask)")
"""Buffers that follow from the architecture; ours are not stored."""


def convert_state_dict(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the tensors of an original checkpoint to those of `MultiExpert`, and of its router, ``router.*``.

    Cosine classifiers, which lie there as (features, classes) and have no bias, are turned to (classes, features).

    Args:
        official: its ``state_dict`` (RIDE) or ``model`` (RIDE-Swin), of one expert or several, with or without
            DataParallel's ``module.``.

    Raises:
        InputError: some names are not those of an original network.
    """
    matches = {name: _match(name) for name in official if not CONSTANTS.fullmatch(name)}
    if unknown := [name for name, match in matches.items() if match is None]:
        raise InputError(f"not an original RIDE checkpoint, these names are unknown: {listed(unknown)}")
    found = {name: match for name, match in matches.items() if match is not None}
    shared = _shared_stages([match[0] for match in found.values()])
    converted = {_ours(*match, shared): official[name] for name, match in found.items()}
    for name, weight in converted.items():
        if re.fullmatch(r"heads\.\d+\.weight", name) and name.replace("weight", "bias") not in converted:
            converted[name] = weight.T.contiguous()
    return converted


def listed(problems: Collection[str]) -> str:
    """Names one after the other; of very many, the first."""
    more = len(problems) - MOST_SHOWN
    return ", ".join(list(problems)[:MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


Found = dict[str, str | None]
"""What a rule finds in a name: its stage, expert and rest."""


def _match(name: str) -> tuple[Found, str] | None:
    for theirs, ours in RULES:
        if match := re.fullmatch(r"(?:module\.)?(?:backbone\.)?" + theirs, name):
            return match.groupdict(), ours
    return None


def _shared_stages(names: Iterable[Found]) -> set[str]:
    """The stages that only one expert has, where there are several; otherwise all but the last."""
    experts: dict[str, set[str]] = {}
    for found in names:
        if stage := found.get("stage"):
            experts.setdefault(stage, set()).add(found.get("expert") or "0")
    if any(len(own) > 1 for own in experts.values()):
        return {stage for stage, own in experts.items() if len(own) == 1}
    return set(sorted(experts)[:-NUM_BRANCHED])


def _ours(found: Found, template: str, shared: set[str]) -> str:
    stage, expert = found.get("stage"), found.get("expert") or "0"
    owner = "trunk" if stage in shared else f"branches.{expert}"
    return template.format(**found | {"expert": expert}, owner=owner, next=int(stage or 0) + 1)
