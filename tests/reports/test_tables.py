"""Tables of results in the terminal and in Markdown."""

import dataclasses
import io

import pytest
from helpers.reports import COUNTS, SPEED, evaluation_of, routing_of
from rich.console import Console

from longtail.data.imbalance import ShotThresholds
from longtail.evaluation.throughput import Speed
from longtail.reports.tables import ReportTable, accuracy_table, routing_table, speed_note
from longtail.utils.format import percent


def printed(table, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def printed_lines(table):
    """Lines without repeated spaces."""
    return [" ".join(line.split()) for line in printed(table).splitlines()]


TABLE = ReportTable(
    ["name", "number", "expert 1"], [["a|b [red]", "1,000", "2"], ["b", "n/a", "30"]], "[title]", ["note"]
)


def test_markdown_escapes_texts_and_aligns_numbers():
    assert TABLE.markdown().splitlines() == [
        "| name | number | expert 1 |",
        "| --- | ---: | ---: |",
        r"| a\|b \[red\] | 1,000 | 2 |",
        "| b | n/a | 30 |",
    ]


def test_terminal_shows_texts_as_they_are():
    lines = printed_lines(TABLE)
    assert lines[0] == "[title]"
    assert "a|b [red] 1,000 2" in lines
    assert "note" in lines
    assert "name number 1" in lines  # "expert 1" takes two lines


def test_accuracy_table():
    evaluation = evaluation_of(COUNTS)
    lines = printed_lines(accuracy_table(evaluation, "a run"))
    assert lines[0] == "a run"
    for name, scores in (
        ("ensemble", evaluation),
        ("expert 1", evaluation.experts[0]),
        ("expert 3", evaluation.experts[2]),
    ):
        numbers = (scores.accuracy, scores.balanced, scores.many, scores.medium, scores.few)
        assert " ".join([name, *map(percent, numbers)]) in lines
    for group in (
        "many: 3 classes with over 100 ",
        "medium: 3 classes with 20 to 100 ",
        "few: 4 classes with under 20 ",
    ):
        assert any(line.startswith(group) for line in lines)
    for number in (evaluation.top5, evaluation.ece, evaluation.disagreement):
        assert any(f" {percent(number)} %" in line for line in lines)
    assert not any("probabilities" in line for line in lines)
    assert not any("temperature" in line for line in lines)
    scaled = accuracy_table(dataclasses.replace(evaluation, temperature=2.0, uncalibrated_ece=0.4321)).notes
    assert "Without temperature scaling: 43.2 %" in scaled
    averaged = dataclasses.replace(evaluation, average="probabilities")
    assert any("probabilities" in note for note in accuracy_table(averaged).notes)


def test_accuracy_table_of_one_expert():
    evaluation = evaluation_of([90, 10], num_experts=1, thresholds=ShotThresholds(99, 21))
    text = printed(accuracy_table(evaluation))
    assert "model" in text
    assert "expert" not in text
    assert "n/a" in text
    assert "nan" not in text
    assert "None" not in text
    assert "many: 0 classes with over 99" in text
    assert "few: 1 class with under 21" in text


def routing_rows(report, speeds=()):
    """The expected cells of the routing table."""
    names = ["1 expert", *(f"{k} experts" for k in range(2, 9))][: len(report.prefixes)]
    rows = []
    for name, scores in zip([*names, f"routed: {report.mean_experts:.2f}"], [*report.prefixes, report], strict=True):
        fractions = (scores.accuracy, scores.balanced, scores.many, scores.medium, scores.few)
        millions = scores.cost / 1e6
        cost = f"{millions:.1f} M" if millions < 99.95 else f"{millions:.0f} M"
        rows.append([name, *map(percent, fractions), cost, f"{scores.cost / 50.01e6:.2f}×"])
    for row, speed in zip(rows, speeds, strict=False):
        row.append(speed)
    return rows


def test_routing_table():
    report = routing_of(COUNTS, images_per_second=SPEED)
    expected = routing_rows(report, ["12,346", "812", "45.7", "7,000"])
    assert routing_table(report).rows == expected
    assert routing_table(routing_of(COUNTS)).rows == routing_rows(routing_of(COUNTS))
    lines = printed_lines(routing_table(report, "a run"))
    assert all(" ".join(row) in lines for row in expected)
    assert lines[0] == "a run"
    assert "experts overall balanced many medium few MACs cost images/s" in lines
    assert not any("…" in line for line in lines)
    notes = " ".join(lines)
    first, second, third = map(percent, report.shares)
    assert f"1 expert {first} %, 2 experts {second} %, 3 experts {third} %" in notes
    for shot, mean in report.mean_experts_by_shot.items():
        assert f"{shot} {mean:.2f}" in notes
        assert f"{shot} {' / '.join(map(percent, report.shares_by_shot[shot]))}" in notes


def test_speed_without_a_router():
    speed = Speed([12_345.6, 81.23], None, 64, 10)
    assert speed_note(speed) == "Images/s with batches of 64: 1 expert 12,346, 2 experts 81.2."


@pytest.mark.parametrize(
    "options",
    [
        {"router": 9.0},
        {"router": -9.0},
        {"num_experts": 2, "images_per_second": Speed([99.0, 50.0], None, 8, 1)},
        {"num_experts": 6, "tested": [0] * 9 + [1]},
        {"num_images": 1},
    ],
)
def test_routing_table_has_no_missing_numbers(options):
    assert not {"nan", "inf", "None"} & {*printed(routing_table(routing_of(COUNTS, **options))).split()}
