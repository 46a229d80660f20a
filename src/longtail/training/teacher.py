"""Teachers: find the one that the settings name, and check that it can teach the student."""

from dataclasses import replace
from pathlib import Path

from longtail.config.recipes import list_recipes, load_recipe, resolve
from longtail.config.schema import Config
from longtail.data.build import preprocessing
from longtail.interop.original.architecture import load_original
from longtail.interop.original.checkpoint import read_original
from longtail.models.multi_expert import MultiExpert
from longtail.runs.context import RunContext
from longtail.runs.hub import is_hub_address
from longtail.runs.model_file import ORIGINAL_SUFFIXES, ModelMetadata, load_model_file, model_path
from longtail.runs.run import Run
from longtail.utils.errors import InputError
from longtail.utils.format import shortened_list


def find_teacher(config: Config) -> Config | Path | None:
    """Returns the teacher that the settings name: a recipe to train first, a file to load, or None.

    Raises:
        InputError: there is no such run, file or recipe; or ``distillation.teacher_settings`` cannot change it.
    """
    name, changes = config.teacher, config.distillation.teacher_settings
    if name is None:
        if changes:
            raise InputError(f"distillation.teacher_settings is {changes}, and there is no teacher")
        return None
    if is_hub_address(name) and not changes:
        return model_path(name)
    path = Path(name)
    if name not in list_recipes() and path.suffix not in (".yaml", ".yml"):
        if changes and (path.exists() or is_hub_address(name)):
            raise InputError(f"teacher '{name}' is trained already; distillation.teacher_settings is for recipes")
        if path.is_dir():
            return Run.open(path).model_path
        if path.is_file():
            return path
        if path.suffix or len(path.parts) > 1:
            raise InputError(f"teacher is '{name}', which does not exist; it must be a run, a model file, or a recipe")
    _check_chain(name)
    for setting in changes:
        if setting.partition("=")[0].partition(".")[0] in ("data", "seed", "device"):
            raise InputError(f"the teacher's '{setting}' cannot change: data, seed and device are those of the student")
    # On the student's images, or the teacher would have seen images that the student is tested on.
    recipe = resolve(name, arguments=[f"--{setting}" for setting in changes])
    return replace(recipe, data=config.data, seed=config.seed, device=config.device)


def _check_chain(name: str) -> None:
    """A teacher may have a teacher, but the chain must end."""
    seen: set[Path] = set()
    teacher: str | None = name
    while teacher is not None and (teacher in list_recipes() or Path(teacher).is_file()):
        path = Path(teacher).resolve()
        if path in seen:
            raise InputError(f"teacher '{teacher}': circular teacher reference")
        seen.add(path)
        teacher = load_recipe(teacher).teacher if path.suffix in ("", ".yaml", ".yml") else None


def check_recipe(teacher: Config, context: RunContext) -> None:
    """Checks, before a teacher is trained, that its images are prepared as the student's.

    Raises:
        InputError: they are not.
    """
    student = context.new_metadata()
    form = preprocessing(teacher.data, teacher.model.backbone, context.dataset)
    if problem := _image_difference(replace(student, **form._asdict()), student):
        raise InputError(f"teacher '{context.config.teacher}': {problem}")


def load_teacher(path: Path, context: RunContext) -> MultiExpert:
    """Loads a trained teacher to the device.

    Raises:
        InputError: the file holds no model, or its classes or its images differ from the student's.
    """
    student = context.new_metadata()
    if path.suffix in ORIGINAL_SUFFIXES:
        try:
            model, problem = load_original(read_original(path).state_dict)[0], ""
        except InputError as error:
            raise InputError(f"teacher {path}: {error}") from error
    else:
        model, metadata = load_model_file(model_path(path))
        problem = _image_difference(metadata, student) or _class_difference(metadata, student)
    if model.num_classes != len(student.class_names):
        problem = f"it has {model.num_classes} classes, and the student has {len(student.class_names)}"
    if problem:
        raise InputError(f"teacher {path}: {problem}")
    return context.to_device(model)


def _image_difference(teacher: ModelMetadata, student: ModelMetadata) -> str:
    for name in ("image_size", "mean", "std"):
        values = getattr(teacher, name), getattr(student, name)
        if values[0] != values[1]:
            return f"its images have {name} {values[0]}, and the student's {values[1]}"
    return ""


def _class_difference(teacher: ModelMetadata, student: ModelMetadata) -> str:
    if not teacher.class_counts or teacher.class_names == student.class_names:  # no counts: converted, names unknown
        return ""
    names, student_names = set(teacher.class_names), set(student.class_names)
    only = {"teacher": sorted(names - student_names), "student": sorted(student_names - names)}
    listed = [f"only the {owner} has {shortened_list(missing)}" for owner, missing in only.items() if missing]
    return f"its classes are not the student's: {'; '.join(listed)}" if listed else "its classes are in another order"
