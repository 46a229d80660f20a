"""The comparison of runs, compared with loops over images."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.html_pages import Page
from helpers.reports import COUNTS, saved_report
from scipy.stats import binomtest

from longtail.reports.html.compare import (
    ComparedRun,
    check_comparable,
    class_differences,
    differences,
    write_comparison,
)
from longtail.utils.errors import InputError
from longtail.utils.format import macs, percent


def compared(name, seed=0, *, counts=COUNTS, **options):
    return ComparedRun(Path("runs") / name, *saved_report(counts, seed=seed, **options))


@pytest.fixture(scope="module")
def runs():
    return [compared("a", 0), compared("b", 1, routed=False), compared("c", 2)]


def test_pairs_of_runs(runs):
    correct = [run.correct for run in runs]
    found = differences(correct)
    assert [(pair.first, pair.second) for pair in found] == [(0, 1), (0, 2), (1, 2)]
    for pair in found:
        first, second = correct[pair.first].tolist(), correct[pair.second].tolist()
        only_first = sum(a and not b for a, b in zip(first, second, strict=True))
        only_second = sum(b and not a for a, b in zip(first, second, strict=True))
        assert pair[2:4] == (only_first, only_second)
        assert pair.p == pytest.approx(binomtest(only_first, only_first + only_second).pvalue)
    smallest = min(found, key=lambda pair: pair.p)
    assert smallest.adjusted == pytest.approx(min(1, 3 * smallest.p))


def test_differences_by_class():
    random = np.random.default_rng(0)
    labels = torch.from_numpy(random.integers(0, 6, 900))
    chances = (0.5, np.where(labels.numpy() == 2, 0.9, 0.5), 0.4)
    correct = [torch.from_numpy(random.uniform(size=900) < chance) for chance in chances]
    difference, adjusted = class_differences(correct, labels, 7)
    assert difference.shape == adjusted.shape == (2, 7)
    p_values = {}
    for run in (1, 2):
        for k in range(6):
            members = [n for n in range(900) if labels[n] == k]
            gained = sum(bool(correct[run][n] and not correct[0][n]) for n in members)
            lost = sum(bool(correct[0][n] and not correct[run][n]) for n in members)
            assert difference[run - 1, k] == pytest.approx((gained - lost) / len(members))
            p_values[run, k] = binomtest(gained, gained + lost).pvalue
    ordered = sorted(p_values.values())
    for (run, k), p in p_values.items():
        rank = ordered.index(p)
        expected = min(1, max((12 - i) * ordered[i] for i in range(rank + 1)))
        assert adjusted[run - 1, k] == pytest.approx(expected)
    assert np.isnan(difference[:, 6]).all()
    assert np.isnan(adjusted[:, 6]).all()
    assert [tuple(cell) for cell in np.argwhere(adjusted < 0.05)] == [(0, 2)]


def test_the_page(tmp_path, runs):
    write_comparison(tmp_path / "compare.html", runs)
    page = Page((tmp_path / "compare.html").read_text(encoding="utf-8"))
    results = page.tables["Accuracy (%) on the test images, cost and speed"]
    assert [row[0].split()[:2] for row in results[1:]] == [
        ["1", "a"],
        ["1", "routed,"],
        ["2", "b"],
        ["3", "c"],
        ["3", "routed,"],
    ]
    assert results[1][1] == f"{100 * runs[0].report.evaluation.accuracy:.1f}"
    assert results[1][8] == macs(runs[0].report.cost.total)
    assert results[2][8] == macs(runs[0].report.routing.cost)
    pairs = page.tables["McNemar's exact test for each pair of runs, with all experts"][1:]
    found = differences([run.correct for run in runs])
    assert [row[2:4] for row in pairs] == [[str(pair.only_first), str(pair.only_second)] for pair in found]
    classes = page.tables["Accuracy of run 1, and differences to it in percentage points, of 10 classes"]
    assert len(classes) == 11
    second = runs[1].report.evaluation.per_class[0] - runs[0].report.evaluation.per_class[0]
    assert float(classes[1][2].replace("−", "-")) == pytest.approx(100 * second, abs=0.051)
    best = max(runs, key=lambda run: run.report.evaluation.accuracy).folder.name
    assert f"{best} has the highest accuracy" in " ".join(page.text.split())


def test_a_real_difference_is_significant(tmp_path):
    first, second = compared("first"), compared("second")
    worse = first.outputs.prefixes.clone()
    worse[:120] = (first.outputs.labels[:120, None] + 1) % 10
    outputs = second.outputs._replace(prefixes=worse)
    accuracy = float((worse[:, -1] == outputs.labels).double().mean())
    evaluation = dataclasses.replace(second.report.evaluation, accuracy=accuracy)
    report = dataclasses.replace(second.report, evaluations={"test": evaluation})
    write_comparison(tmp_path / "compare.html", [ComparedRun(Path("x/same"), report, outputs), first])
    text = " ".join(Page((tmp_path / "compare.html").read_text(encoding="utf-8")).text.split())
    assert "first has the highest accuracy" in text
    assert "The difference is significant (p < 0.0001)" in text


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    runs = [ComparedRun(Path("x/run"), *saved_report(COUNTS)), ComparedRun(Path("y/run"), *saved_report(COUNTS))]
    write_comparison(tmp_path / "compare.html", runs)
    text = " ".join(Page((tmp_path / "compare.html").read_text(encoding="utf-8")).text.split())
    assert "x/run, y/run" in text


@pytest.mark.parametrize(("others", "rank"), [(1, ""), (2, ", the highest")])
def test_equal_accuracies_are_called_so(tmp_path, others, rank):
    best = compared("a")
    worse = compared("c", 3)
    assert worse.report.evaluation.accuracy < best.report.evaluation.accuracy
    runs = [best, best._replace(folder=Path("b")), worse]
    write_comparison(tmp_path / "compare.html", runs[: 1 + others])
    text = " ".join(Page((tmp_path / "compare.html").read_text(encoding="utf-8")).text.split())
    assert f"a and b have the same accuracy{rank}: {percent(best.report.evaluation.accuracy)} % of 200 test" in text
    assert "The difference is not significant (p = 1.00)" in text
    assert "points more" not in text


def test_other_test_images_are_refused(runs):
    check_comparable(runs)
    other = runs[1]._replace(outputs=runs[1].outputs._replace(test_images="other"))
    with pytest.raises(InputError, match=r"'runs/a' and 'runs/b' have different test images \(200 of 'digits', 200"):
        check_comparable([runs[0], other])
    renamed = [*runs[2].report.class_names[:-1], "another class"]
    other = runs[2]._replace(report=dataclasses.replace(runs[2].report, class_names=renamed))
    with pytest.raises(InputError, match="'runs/c'"):
        check_comparable([*runs[:2], other])
