"""The table of `longtail check`."""

from collections.abc import Sequence
from pathlib import Path

from longtail.data.check.findings import KINDS, Finding
from longtail.reports.tables import ReportTable
from longtail.utils.console import printable
from longtail.utils.csv_lines import path_cell
from longtail.utils.files import write_csv

EXAMPLES = 3


def write_findings(path: Path, findings: Sequence[Finding]) -> None:
    """Writes a CSV file with one line for each finding.

    Raises:
        InputError: the file cannot be written.
    """
    rows = [found._replace(image=path_cell(found.image), other=path_cell(found.other)) for found in findings]
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
    if finding.other:
        return f"{subject} = {finding.other}"
    return f"{subject} ({finding.detail})" if finding.detail else subject
