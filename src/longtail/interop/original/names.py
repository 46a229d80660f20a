"""Names of tensors: from checkpoints of the original RIDE and RIDE-Swin to `MultiExpert`."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from longtail.utils.errors import InputError
from longtail.utils.format import shortened_list

NUM_BRANCHED = 2
"""Number of last stages that belong to a single expert. Its names do not show them"""

# Original name -> name in `MultiExpert`; a name matches at most one rule. {owner} is the trunk or the branch of the
# expert. {next} is the next stage: the original Swin downsamples at the end of a stage, timm at the start of the next.
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
    (r"(?P<rest>absolute_pos_embed)", "trunk.patch_embed.{rest}"),
    (r"layers\.(?P<stage>\d)\.(branches\.(?P<expert>\d+)\.)?(?P<rest>blocks\..+)", "{owner}.layers.{stage}.{rest}"),
    (r"layers\.(?P<stage>\d)\.(branches\.(?P<expert>\d+)\.)?(?P<rest>downsample\..+)", "{owner}.layers.{next}.{rest}"),
    (r"norm\.(?P<rest>weight|bias)", "neck.norm.{rest}"),
)

BUFFERS = re.compile(r".*\.(relative_position_index|attn_mask)")
"""Buffers that follow from the architecture; models of longtail do not store them"""

Fields = dict[str, str | None]
"""Parts of an original name: stage, expert and rest"""


def convert_state_dict(original: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors of an original checkpoint by their names in `MultiExpert`; a router's start with ``router.``.

    Cosine classifiers have no bias, and shape (features, classes) in the original. They are transposed.

    Args:
        original: ``state_dict`` (RIDE) or ``model`` (RIDE-Swin), of one expert or several, with or without the
            ``module.`` of DataParallel.

    Raises:
        InputError: a name is not one of an original network.
    """
    matches = {name: _match(name) for name in original if not BUFFERS.fullmatch(name)}
    if unknown := [name for name, match in matches.items() if match is None]:
        raise InputError(f"not a checkpoint of RIDE or RIDE-Swin; unknown names: {shortened_list(unknown)}")
    known = {name: match for name, match in matches.items() if match is not None}
    shared = _shared_stages(fields for fields, _ in known.values())
    converted = {_new_name(fields, template, shared): original[name] for name, (fields, template) in known.items()}
    for name, weight in converted.items():
        if re.fullmatch(r"heads\.\d+\.weight", name) and name.replace("weight", "bias") not in converted:
            converted[name] = weight.T.contiguous()
    return converted


def _match(name: str) -> tuple[Fields, str] | None:
    for pattern, template in RULES:
        if match := re.fullmatch(rf"(?:module\.)?(?:backbone\.)?{pattern}", name):
            return match.groupdict(), template
    return None


def _shared_stages(names: Iterable[Fields]) -> set[str]:
    """Returns the stages of the trunk: those of one expert if others have several; otherwise all but the last ones."""
    experts: dict[str, set[str]] = {}
    for fields in names:
        if stage := fields.get("stage"):
            experts.setdefault(stage, set()).add(fields.get("expert") or "0")
    shared = {stage for stage, members in experts.items() if len(members) == 1}
    return set(sorted(experts)[:-NUM_BRANCHED]) if len(shared) == len(experts) else shared


def _new_name(fields: Fields, template: str, shared: set[str]) -> str:
    stage, expert = fields.get("stage"), fields.get("expert") or "0"
    owner = "trunk" if stage in shared else f"branches.{expert}"
    return template.format(**fields | {"expert": expert}, owner=owner, next=int(stage or 0) + 1)
