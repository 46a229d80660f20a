"""Teachers: finding what the settings name, and refusing what cannot teach."""

from dataclasses import replace
from pathlib import Path

from longtail.config.recipes import list_recipes, load_recipe
from longtail.config.schema import Config
from longtail.data import build as data_build
from longtail.interop.original.architecture import load_original
from longtail.interop.original.checkpoint import read_original
from longtail.interop.original.names import listed
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import RunContext
from longtail.runs.model_file import ModelMetadata, load_model_file, model_file
from longtail.runs.run import Run
from longtail.utils.errors import InputError

OFFICIAL_SUFFIXES = (".pth", ".pt", ".tar")


def find_teacher(config: Config) -> Config | Path | None:
    """What the settings name as teacher: a recipe to train first, a file to load, or nothing.

    Raises:
        InputError: there is no such run, file or recipe.
    """
    name = config.teacher
    if name is None:
        return None
    path = Path(name)
    if name not in list_recipes() and path.suffix not in (".yaml", ".yml"):
        if path.is_dir():
            return Run.open(path).model_path
        if path.is_file():
            return path
        if path.suffix or len(path.parts) > 1:
            raise InputError(f"teacher is '{name}', which is not there; it must be a run, a model file, or a recipe")
    _check_chain(name)
    # On the same images as the student, or it would know what the student is tested on.
    return replace(load_recipe(name), data=config.data, seed=config.seed, device=config.device)


def _check_chain(name: str) -> None:
    """Teachers may have teachers, but none may be its own, by whatever way."""
    seen: set[Path] = set()
    teacher: str | None = name
    while teacher is not None and (teacher in list_recipes() or Path(teacher).is_file()):
        path = Path(teacher).resolve()
        if path in seen:
            raise InputError(f"teacher '{teacher}' is in the end its own teacher")
        seen.add(path)
        teacher = load_recipe(teacher).teacher if path.suffix in ("", ".yaml", ".yml") else None


def check_planned(teacher: Config, context: RunContext) -> None:
    """Refuses a recipe as teacher whose images would be prepared otherwise, before it is trained.

    Raises:
        InputError: they would.
    """
    theirs = data_build.preprocessing(teacher, context.dataset)._asdict()
    if problem := _other_images(replace(context.metadata(), **theirs), context.metadata()):
        raise InputError(f"teacher '{context.config.teacher}': {problem}")


def load_teacher(path: Path, context: RunContext) -> MultiExpert:
    """A trained teacher on the device.

    Raises:
        InputError: the file is no model, or its classes or its images are not the student's.
    """
    if path.suffix in OFFICIAL_SUFFIXES:
        try:
            model, metadata = load_original(read_original(path).state_dict).model, None
        except InputError as error:
            raise InputError(f"teacher {path}: {error}") from error
    else:
        model, metadata = load_model_file(model_file(path))
    student = context.metadata()
    problem = "" if metadata is None else _other_images(metadata, student) or _other_classes(metadata, student)
    if model.num_classes != len(student.class_names):
        problem = f"it has {model.num_classes} classes, and the student {len(student.class_names)}"
    if problem:
        raise InputError(f"teacher {path}: {problem}")
    return context.on_device(model)


def _other_images(teacher: ModelMetadata, student: ModelMetadata) -> str:
    for name in ("image_size", "mean", "std"):
        theirs, own = getattr(teacher, name), getattr(student, name)
        if theirs != own:
            return f"its images have {name} {theirs}, and the student's {own}"
    return ""


def _other_classes(teacher: ModelMetadata, student: ModelMetadata) -> str:
    if not teacher.class_counts:  # converted: it does not know their names
        return ""
    theirs, own = set(teacher.class_names), set(student.class_names)
    if theirs == own:
        return "" if teacher.class_names == student.class_names else "its classes are in another order"
    alone = [(f"only the teacher has {listed(sorted(theirs - own))}", theirs - own)]
    alone += [(f"only the student has {listed(sorted(own - theirs))}", own - theirs)]
    return "its classes are not the student's: " + "; ".join(text for text, names in alone if names)
