"""Rows that differ in what follows the experts' training only share that training."""

from collections.abc import Sequence
from dataclasses import replace

from longtail.config.recipes import config_fingerprint
from longtail.config.schema import ClassifierConfig, Config, EvaluationConfig, RouterConfig
from longtail.experiments.spec import Job
from longtail.models.multi_expert import MultiExpert
from longtail.runs.model_file import ModelMetadata, set_average
from longtail.runs.run import Run


def experts_settings(config: Config) -> str:
    """All that the experts depend on: with the same, the same experts come out."""
    without = {"classifier": ClassifierConfig(), "router": RouterConfig(), "evaluation": EvaluationConfig()}
    # Where images are counts here: two rows may have folders with the same names of files.
    return f"{config.data.root}\n{config_fingerprint(replace(config, name='', **without))}"  # type: ignore[arg-type]


def reusable_runs(jobs_planned: Sequence[Job]) -> dict[str, Job]:
    """For each training, by name, the first of those that train the same experts; for that one itself, nobody.

    One whose classifiers are replaced gives nothing: its model is not what its experts were trained to be.
    """
    first: dict[str, Job] = {}
    for one in jobs_planned:
        if one.config.classifier.method == "none":
            first.setdefault(experts_settings(one.config), one)
    found = {one.name: first.get(experts_settings(one.config), one) for one in jobs_planned}
    return {name: donor for name, donor in found.items() if donor.name != name}


def copy_experts(donor: Run, run: Run, config: Config) -> None:
    """Makes a run that is finished but for what follows its experts, with those of a finished run.

    Raises:
        InputError: the donor is damaged, or the folder cannot be written to.
    """
    model, metadata = _plain(*donor.load_model())
    metadata = set_average(model, metadata, config.evaluation.average)
    with run.lock():
        seconds = sum(record["seconds"] for record in donor.history())  # not what followed: it has its own
        environment = donor.environment() | {"experts_of": donor.folder.name, "training_seconds": seconds}
        run.write_json("environment.json", environment)
        if (skipped := donor.skipped()) is not None:
            run.write_skipped(skipped)
        run.write_history(donor.history())
        run.save_model(model, metadata)
        run.write_config(config)  # last: a folder with settings is a run, and this one has its experts


def _plain(model: MultiExpert, metadata: ModelMetadata) -> tuple[MultiExpert, ModelMetadata]:
    """As it was before a router came to it."""
    model.router = None
    architecture = {name: value for name, value in metadata.architecture.items() if name != "router"}
    return model, replace(metadata, architecture=architecture, threshold_for="")
