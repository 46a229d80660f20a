"""Rows that differ only in the stages after the experts share the training of the experts."""

from collections.abc import Sequence
from dataclasses import replace

from longtail.config.recipes import config_fingerprint
from longtail.config.schema import ClassifierConfig, Config, EvaluationConfig, RouterConfig
from longtail.experiments.spec import Job
from longtail.runs.run import Run


def expert_fingerprint(config: Config) -> str:
    """Identifies the training of the experts: equal fingerprints give equal experts."""
    evaluation = EvaluationConfig()
    if config.training.patience:  # the best epoch on the validation images depends on their predictions
        evaluation = replace(evaluation, average=config.evaluation.average, views=config.evaluation.views)
    later = {"classifier": ClassifierConfig(), "router": RouterConfig(), "evaluation": evaluation}
    # With the folder of the images: two rows may have folders with the same file names.
    return f"{config.data.root}\n{config_fingerprint(replace(config, name='', **later))}"  # type: ignore[arg-type]


def reusable_runs(jobs: Sequence[Job]) -> dict[str, Job]:
    """Returns, by job name, the first job that trains the same experts, if it is another job.

    A job that replaces the classifiers cannot be reused, because its model has other heads.
    """
    first: dict[str, Job] = {}
    for job in jobs:
        if job.config.classifier.method == "none":
            first.setdefault(expert_fingerprint(job.config), job)
    sources = {job.name: first.get(expert_fingerprint(job.config), job) for job in jobs}
    return {name: source for name, source in sources.items() if source.name != name}


def copy_experts(source: Run, run: Run, config: Config) -> None:
    """Starts a run with the experts of a finished run; the later stages remain to be done.

    Raises:
        InputError: the source is damaged, or the folder is not writable.
    """
    model, metadata = source.load_model()
    model.router, model.average = None, config.evaluation.average
    with run.lock():
        seconds = sum(record["seconds"] for record in source.history())  # without the later stages
        environment = source.environment() | {"experts_of": source.folder.name, "training_seconds": seconds}
        if (skipped := source.skipped()) is not None:
            run.write_skipped(skipped)
        run.start(config, environment, (model, replace(metadata, threshold_for="")), source.history())
