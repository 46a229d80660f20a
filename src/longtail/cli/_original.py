"""Options and settings files of the originals, for whoever comes from them: translated where longtail has the same."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longtail.utils.errors import InputError

if TYPE_CHECKING:
    from longtail.config.schema import Config

logger = logging.getLogger(__name__)

BOOLEAN = {"0": "false", "1": "true"}

# Option -> setting, and its values where they differ
OPTIONS: dict[str, tuple[str, dict[str, str]]] = {
    "lr": ("training.learning_rate", {}),
    "learning_rate": ("training.learning_rate", {}),
    "bs": ("training.batch_size", {}),
    "batch_size": ("training.batch_size", {}),
    "epochs": ("training.epochs", {}),
    "warmup": ("training.warmup", {}),
    "gamma": ("training.decay", {}),
    "save_period": ("training.keep_every", {}),
    "num_experts": ("model.num_experts", {}),
    "reduce_dimension": ("model.width", {"0": "full", "1": "narrow"}),
    "distribution_aware_diversity_factor": ("loss.diversity_factor", {}),
    "collaborative_loss": ("loss.collaborative", BOOLEAN),
    "pos_weight": ("router.positive_weight", {}),
    "distill_checkpoint": ("teacher", {}),
    # RIDE-Swin
    "data_path": ("data.root", {}),
    "accumulation_steps": ("training.accumulation", {}),
    "amp_opt_level": ("training.precision", {"O0": "float32", "O1": "fp16", "O2": "fp16"}),
}
DEVICE = "--device cuda:1 chooses a GPU"
WIDTHS = "--model.width [192,384] sets the channels of the last two stages"
STEPS = ("step1", "step2")
HINTS = {
    "layer2_dimension": WIDTHS,
    "layer3_dimension": WIDTHS,
    "layer4_dimension": WIDTHS,
    "load_crt": "longtail classifier RUN --classifier.method retrain does that",
    "d": DEVICE,
    "use_checkpoint": "--training.checkpoint_activations true does that",
    "gpu": DEVICE,
    "eval": "longtail evaluate RUN does that",
    "throughput": "the images per second are in the results of a run",
    "tag": "--output names the run folder",
    "zip": "data.root is a folder; decoded images are kept in memory up to data.cache_gib",
    "cache_mode": "decoded images are kept in memory up to data.cache_gib",
    "local_rank": "torchrun --nproc-per-node N -m longtail train ... uses several GPUs",
}


def resolve_config(name: str, arguments: Sequence[str]) -> "Config":
    """Returns the settings of a recipe, a YAML file, or a settings file of RIDE or RIDE-Swin.

    Args:
        name: of the recipe, or path of the file.
        arguments: ``--section.field value``, or options of the originals.

    Raises:
        InputError: as `longtail.load_recipe`; or a setting or an option of the originals has no counterpart.
    """
    from longtail.config.recipes import list_recipes, resolve
    from longtail.interop.original.settings import is_original, read_settings

    settings, changes = translate_options(arguments)
    path = Path(name)
    if name not in list_recipes() and path.is_file():
        content = read_settings(path)
        if is_original(content):
            return _translated(path, content, changes, settings)
    if changes:
        raise InputError("--opts changes settings of RIDE-Swin's YAML files; here they are --section.field value")
    return resolve(name, arguments=settings)


def translate_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns arguments with options of the originals as settings, and the words after ``--opts``.

    Raises:
        InputError: an option has no counterpart; the message names what longtail has instead.
    """
    words = [part for argument in arguments for part in _split(argument)]
    settings, changes, translated = list[str](), list[str](), list[str]()
    steps = dict[str, str]()
    while words:
        word = words.pop(0)
        name = _name(word)
        if word == "--opts":
            while words and not words[0].startswith("--"):
                changes.append(words.pop(0))
        elif name in HINTS:
            raise InputError(f"there is no {word}; {HINTS[name]}")
        elif name in (*OPTIONS, *STEPS) and words:
            value = words.pop(0)
            if name in OPTIONS:
                setting, values = OPTIONS[name]
                settings += [f"--{setting}", values.get(value, value)]
            else:
                setting = "training.milestones"
                steps[name] = value
            translated.append(f"{word} is {setting}")
        else:
            settings.append(word)
    if steps:
        settings += ["--training.milestones", f"[{','.join(steps[name] for name in sorted(steps))}]"]
    if translated:
        logger.info("Options of the original code: %s", "; ".join(translated))
    return settings, changes


def _name(word: str) -> str:
    """Returns the name of an option, with underscores; an empty text for another word."""
    return word.lstrip("-").replace("-", "_") if word == "-d" or word.startswith("--") else ""


def _split(argument: str) -> list[str]:
    """An option of the originals and its value, also if they are written with an equals sign."""
    option, equals, value = argument.partition("=")
    return [option, value] if equals and _name(option) in (*OPTIONS, *STEPS, *HINTS) else [argument]


def _translated(path: Path, content: dict[str, Any], changes: Sequence[str], arguments: Sequence[str]) -> "Config":
    from longtail.config.recipes import merged, nested, resolve
    from longtail.config.yaml_file import parse_yaml
    from longtail.interop.original.settings import is_swin, translate

    if changes and (len(changes) % 2 or not is_swin(content)):
        raise InputError("--opts takes pairs KEY VALUE that change a YAML file of RIDE-Swin")
    pairs = zip(changes[::2], changes[1::2], strict=True)
    changed = nested({key: parse_yaml(f"value: {value}", f"--opts {key}")["value"] for key, value in pairs})
    try:
        base, settings, ignored, is_router = translate(merged(content, changed))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {error}") from error
    if is_router:
        raise InputError(
            f"{path} is about the router of a trained model. 'longtail convert CHECKPOINT RUN' makes a run of a "
            "checkpoint, and 'longtail router RUN' trains its router"
        )
    if ignored:
        raise InputError(f"{path}: longtail has nothing like {', '.join(ignored)}; remove them, or start from a recipe")
    logger.info("%s: settings of the original code, translated", path)
    return resolve(base, settings, arguments)
