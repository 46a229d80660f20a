"""The check of a data set: its findings as a table and as a file."""

import logging
from collections.abc import Sequence
from pathlib import Path

from longtail.config.schema import Config
from longtail.data.build import load_data
from longtail.data.check.findings import KINDS, Finding, ImageChecks
from longtail.data.check.reading import read_images
from longtail.data.copies import AllImages
from longtail.evaluation.label_errors import wrong_labels
from longtail.reports.tables import ReportTable
from longtail.runs.opened_model import open_model
from longtail.runs.pulled import as_run
from longtail.runs.run import Run
from longtail.utils.console import printable, show
from longtail.utils.csv_lines import path_cell
from longtail.utils.errors import InputError
from longtail.utils.files import write_csv

logger = logging.getLogger(__name__)

EXAMPLES = 3


def check(
    config: Config | None = None,
    *,
    run: Run | str | Path | None = None,
    output: str | Path | None = None,
    min_side: int = 32,
) -> list[Finding]:
    """Checks the images of a data set, shows a table, and writes all findings to a CSV file.

    Finds images that do not decode, blank and tiny ones and those of unusual size, copies and near copies, and classes
    with few images. With a trained run it also finds likely wrong labels, see `longtail.evaluation.label_errors`.

    Args:
        config: settings whose section data names the images; those of the run by default.
        run: a run, or its folder, that was trained on these images.
        output: the CSV file; check.csv in the run folder, or in the current folder, by default.
        min_side: images whose smaller side has fewer pixels are tiny.

    Returns:
        The findings, in the order of `longtail.data.check.findings.KINDS`.

    Raises:
        InputError: there are no such images, or no such run; or the run was trained on other images.
    """
    run = None if run is None else as_run(run)
    if config is None:
        if run is None:
            raise InputError("check needs settings or a run, which name the images")
        config = run.config
    path = Path(output) if output is not None else (Path() if run is None else run.folder) / "check.csv"
    if not path.parent.is_dir():
        raise InputError(f"output is '{path}', but '{path.parent}' is not a folder")
    images = AllImages(load_data(config.data), Path(config.data.root))
    checks = ImageChecks(images, read_images(images), min_side)
    findings = list(checks.findings())
    if run is not None:
        with open_model(run, config) as opened:
            findings += wrong_labels(opened)
    write_findings(path, findings)
    show(check_table(findings, checks.summary(), has_run=run is not None))
    logger.info("All findings: %s", path)
    return findings


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Writes a CSV file with one line for each finding.

    Raises:
        InputError: the file cannot be written.
    """
    rows = [found._replace(image=path_cell(found.image), original=path_cell(found.original)) for found in findings]
    write_csv(path, [("kind", "image", "class", "split", "other image", "detail"), *rows])


def check_table(findings: Sequence[Finding], summary: Sequence[str], *, has_run: bool) -> ReportTable:
    """Number and three examples of each kind of finding, below a summary of the images.

    Without a run, labels were not judged.
    """
    rows = []
    for kind in KINDS:
        found = [finding for finding in findings if finding.kind == kind]
        # Without the details: they are in the file.
        examples = "\n".join(printable(_example(finding)).replace("\n", "\\n") for finding in found[:EXAMPLES])
        rows.append((kind, f"{len(found):,}", examples))
    if not has_run:
        rows[-1] = (rows[-1][0], "n/a", "needs a trained run: --run RUN")
    return ReportTable(("finding", "number", "examples"), rows, "\n".join(summary), text_columns=3)


def _example(finding: Finding) -> str:
    subject = finding.image or finding.class_name
    if finding.original:
        return f"{subject} = {finding.original}"
    return f"{subject} ({finding.detail})" if finding.detail else subject
