"""Runs of the Hugging Face Hub: a model that others pushed becomes a run folder."""

from pathlib import Path

from longtail.config.recipes import load_recipe
from longtail.runs.hub import HubAddress, download, is_hub_address, parse_address
from longtail.runs.model_file import MODEL_FILE, load_model_file
from longtail.runs.run import Run, new_run
from longtail.utils.files import write_atomically

PULLED_FROM = "pulled_from"
"""Key in environment.json: address and commit"""


def as_run(run: Run | str | Path) -> Run:
    """Returns a run, which is opened if it is given by its folder or its address; see `open_run`."""
    return run if isinstance(run, Run) else open_run(run)


def open_run(source: str | Path) -> Run:
    """Opens a run folder, or downloads ``hf://owner/name`` to a new run folder runs/name.

    The same commit is downloaded and written once. Nothing of it is executed, and model and settings are checked.

    Raises:
        InputError: there is no such run, or the download fails.
    """
    if not is_hub_address(source):
        return Run.open(source)
    address = parse_address(str(source))
    model = download(address, MODEL_FILE)
    exact = HubAddress(address.repository, model.parent.name)  # snapshots/COMMIT/NAME
    name = address.repository.partition("/")[2]
    for folder in sorted(Path("runs").glob(f"{name}*")):
        if Run(folder).environment().get(PULLED_FROM) == str(exact) and Run(folder).config_path.is_file():
            return Run.open(folder)
    config = load_recipe(download(exact, "config.yaml"))
    load_model_file(model)
    run = new_run(name)
    with run.lock():
        try:
            run.write_json("environment.json", {PULLED_FROM: str(exact)})
            write_atomically(run.model_path, model.read_bytes())
            run.write_config(config)  # last: a folder with settings is a run
        except BaseException:  # such as a full disk
            run.discard()
            raise
    return run
