"""Upload of a run to the Hugging Face Hub: model, settings, results and a model card."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import longtail
from longtail.config.recipes import to_yaml
from longtail.config.schema import Config
from longtail.reports.model_card import ModelCard
from longtail.reports.saved import load_report
from longtail.runs.hub import REPOSITORY, HubAddress, hub_errors, is_hub_address
from longtail.runs.model_file import MODEL_FILE, load_metadata
from longtail.runs.run import Run
from longtail.utils.errors import InputError


def push(
    run: Run | str | Path,
    repository: str,
    *,
    private: bool = False,
    license: str | None = None,
    message: str = "Upload a model of longtail",
) -> str:
    """Uploads a finished run to the Hugging Face Hub, in one commit: all of it or nothing.

    The repository gets ``model.safetensors``, ``config.json`` (architecture, preprocessing, classes), ``config.yaml``
    (the settings, without the folder of the data), ``results.json`` and a model card, ``README.md``. A repository that
    exists gets a new commit. Names of image files and the command of the training are not uploaded.

    Args:
        run: a run or its folder.
        repository: owner/name.
        private: makes the new repository private.
        license: of the weights, an identifier of the Hub such as "mit"; named in the card.
        message: of the commit.

    Returns:
        The address of the model, ``hf://owner/name``.

    Raises:
        InputError: there is no such run, or it is not finished; or the Hub cannot be reached, or refuses.
    """
    if not re.fullmatch(REPOSITORY, repository):
        raise InputError(f"'{repository}' is not the name of a repository; it must be owner/name")
    run = run if isinstance(run, Run) else Run.open(run)
    if not run.is_finished:
        raise InputError(f"'{run.folder}' is not finished, or not evaluated: it has no results to publish")
    files = published_files(run, repository, license)
    from huggingface_hub import CommitOperationAdd, HfApi

    address = HubAddress(repository)
    with hub_errors(str(address)):
        api = HfApi(library_name="longtail", library_version=longtail.__version__)
        exists = api.repo_exists(repository)
        if private and exists and not api.model_info(repository).private:
            raise InputError(f"{address}: exists and is public; --private is for a new repository")
        if not exists:
            api.create_repo(repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        operations.append(CommitOperationAdd(MODEL_FILE, str(run.model_path)))
        api.create_commit(repository, operations, commit_message=message)
    return str(address)


def published_files(run: Run, repository: str, license: str | None = None) -> dict[str, bytes]:
    """Returns the small files that `push` uploads besides the model, by name.

    Raises:
        InputError: the results are incomplete, or of an earlier version.
    """
    saved = load_report(run)
    if saved is None:
        raise InputError(
            f"the results of '{run.folder}' are incomplete, or of an earlier version; longtail evaluate {run.folder} "
            "writes them again"
        )
    report, metadata = saved[0], load_metadata(run.model_path)
    card = ModelCard(repository, replace(report, config=_without_paths(report.config)), metadata, license)
    about = {"library_name": "longtail", "longtail_version": longtail.__version__, **asdict(metadata)}
    return {
        "README.md": card.text().encode(),
        "config.json": (json.dumps(about, indent=1) + "\n").encode(),
        "config.yaml": to_yaml(_without_paths(run.config)).encode(),
        "results.json": run.results_path.read_bytes(),
    }


def _without_paths(config: Config) -> Config:
    """The settings without the folders of this machine."""
    teacher, pretrained = config.teacher, config.model.pretrained
    return replace(
        config,
        data=replace(config.data, root="data"),
        teacher=None if teacher is None else _name(teacher),
        model=replace(config.model, pretrained=_name(pretrained) if isinstance(pretrained, str) else pretrained),
    )


def _name(source: str) -> str:
    return source if is_hub_address(source) else Path(source).name
