import dataclasses
import io
import math
import re

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from longtail import plots
from longtail.config import Config
from longtail.metrics import evaluate_logits
from longtail.report import summary, write_report

PNG = b"\x89PNG\r\n\x1a\n"
HISTORY = [
    {"epoch": 1, "loss": 2.0, "accuracy": 0.2, "learning_rate": 0.1, "seconds": 70.0},
    {"epoch": 2, "loss": 1.5, "accuracy": 0.4, "learning_rate": 0.1, "seconds": 70.0, "val_accuracy": 0.3},
    {"epoch": 3, "loss": 1.0, "accuracy": 0.5, "learning_rate": 0.001, "seconds": 70.0, "val_accuracy": 0.35},
]


def evaluation_of(class_counts, num_experts=3, num_images=200, tested=None, seed=0):
    """An evaluation whose test images cover the ``tested`` classes, all by default."""
    num_classes = len(class_counts)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.as_tensor(range(num_classes) if tested is None else tested)[torch.arange(num_images) % num_classes]
    logits = torch.randn(num_images, num_experts, num_classes, generator=generator)
    logits[torch.arange(num_images), :, labels] += 1.5
    return evaluate_logits(logits, labels, class_counts)


def report(folder, class_counts, evaluation, names=None, history=HISTORY, config=None, **more):
    write_report(
        folder,
        config=dataclasses.asdict(config or Config()),
        evaluations={"test": evaluation, **more},
        class_names=names or [f"class {k}" for k in range(len(class_counts))],
        class_counts=class_counts,
        history=history,
        environment={"torch": "2.15", "device": "cpu"},
    )
    return (folder / "report.md").read_text(encoding="utf-8")


def pictures(folder):
    """Names of the pictures, after a look at whether they are some."""
    files = sorted((folder / "plots").glob("*.png"))
    assert all(file.read_bytes().startswith(PNG) for file in files)
    return [file.stem for file in files]


def table_rows(page):
    """Cells of every line of a table, by its first cell; a line's width must be its header's."""
    rows, width = {}, None
    for line in page.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        width = width or len(cells)
        assert len(cells) == width, line
        rows.setdefault(cells[0], []).append(cells[1:])
    return rows


def percent(fraction):
    return "n/a" if fraction is None else f"{100 * fraction:.1f}"


def printed(table, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


COUNTS = [500, 300, 150, 90, 60, 30, 15, 10, 5, 2]


def test_summary_in_a_narrow_terminal():
    result = evaluation_of(COUNTS)
    text = printed(summary(result, "a run"))
    rows = {line[: len("  expert 1")].strip(): line.split()[-5:] for line in text.splitlines() if "." in line}
    for name, scores in (("ensemble", result), ("expert 1", result.experts[0]), ("expert 3", result.experts[2])):
        expected = (scores.accuracy, scores.balanced, scores.many, scores.medium, scores.few)
        assert rows[name] == [percent(value) for value in expected]
    assert "a run" in text
    for group in ("many: 3 classes of over 100", "medium: 3 classes of 20 to 100", "few: 4 classes of under 20"):
        assert group in text
    for number in (result.top5, result.ece, result.disagreement):
        assert f"{percent(number)} %" in text


def test_summary_of_one_expert_has_one_row_and_no_nan():
    text = printed(summary(evaluation_of([90, 10], num_experts=1), "two classes", many_above=99, few_below=21))
    assert "model" in text
    assert "expert" not in text
    assert "n/a" in text
    assert "nan" not in text
    assert "None" not in text
    assert "many: 0 classes of over 99" in text
    assert "few: 1 class of under 21" in text


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, instead of files."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    return figures


def test_page_holds_the_numbers(tmp_path, drawn):
    result, validation = evaluation_of(COUNTS), evaluation_of(COUNTS, seed=1)
    config = dataclasses.replace(Config(), name="birds", seed=7)
    page = report(tmp_path, COUNTS, result, config=config, val=validation)
    assert page.startswith("# birds\n")
    assert "one run with seed 7" in page
    assert "3 epochs in 4 min" in page
    assert "1,162 training images of 10 classes" in page
    assert "an imbalance of 250 to 1" in page

    rows = table_rows(page)
    for part, scores in (("test", result), ("val", validation)):
        accuracies = [percent(value) for value in (scores.accuracy, scores.balanced, scores.many, scores.medium)]
        assert rows[part][0][:5] == ["200", *accuracies]
        assert rows[part][0][-3:] == [percent(scores.top5), percent(scores.ece), f"{scores.nll:.3f}"]
    assert rows["expert 2"][0][0] == percent(result.experts[1].accuracy)
    assert rows["few"][0][:5] == ["under 20", "4", "32", "80", percent(result.few)]
    assert sum(map(float, rows["few"][0][5:])) == pytest.approx(100, abs=0.2)
    few_as_many = result.confusion[6:, :3].sum() / result.confusion[6:].sum()
    assert rows["few"][0][5] == percent(few_as_many)
    assert rows["device"] == [["cpu"]]

    worst = min(range(10), key=lambda k: result.per_class[k])
    assert [f"{COUNTS[worst]:,}", "20", percent(result.per_class[worst])] in rows[f"class {worst}"]
    first = result.frequent_confusions()[0]
    share = percent(first["count"] / 20)
    assert [f"class {first['predicted']}", str(first["count"]), share] in rows[f"class {first['true']}"]

    settings = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    assert settings["seed"] == 7
    assert settings["data"]["mean"] == list(config.data.mean)


def test_every_picture_is_written_and_shown(tmp_path):
    settings = dict(matplotlib.rcParams)
    page = report(tmp_path, COUNTS, evaluation_of(COUNTS))
    assert pictures(tmp_path) == ["calibration", "classes", "confusion", "experts", "history"]
    assert sorted(re.findall(r"\(plots/(\w+)\.png\)", page)) == pictures(tmp_path)
    assert dict(matplotlib.rcParams) == settings


def broken_evaluation():
    logits = torch.randn(30, 2, 3)
    logits[0] = math.nan
    return evaluate_logits(logits, torch.arange(30) % 3, [30, 20, 10])


DIVERGED = [*HISTORY, {**HISTORY[0], "epoch": 4, "loss": math.nan}]
EDGES = {
    # name: (class counts, evaluation, history, pictures that have nothing to show)
    "two classes, one expert, no history": ([90, 10], lambda c: evaluation_of(c, 1), [], {"experts", "history"}),
    "classes without training images, one epoch": ([300, 0, 0], evaluation_of, HISTORY[:1], set()),
    "classes without test images, a loss that diverged": (
        COUNTS,
        lambda c: evaluation_of(c, tested=[0] * 9 + [4]),
        DIVERGED,
        set(),
    ),
    "logits that are not finite": ([30, 20, 10], lambda c: broken_evaluation(), HISTORY, {"calibration"}),
    "a thousand classes": ([max(1, 1300 - 2 * k) for k in range(1000)], evaluation_of, HISTORY, set()),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("edge", EDGES)
def test_edges(tmp_path, edge):
    counts, make, history, missing = EDGES[edge]
    page = report(tmp_path, counts, make(counts), history=history)
    expected = {"calibration", "classes", "confusion", "experts", "history"} - missing
    assert set(pictures(tmp_path)) == expected == set(re.findall(r"\(plots/(\w+)\.png\)", page))
    results = page.split("## Settings")[0]
    assert not re.search(r"\bnan\b|\binf\b|None", results)
    table_rows(page)


@pytest.mark.filterwarnings("error")
def test_names_of_all_kinds(tmp_path):
    names = ["a|b `c` *d* [e](f) <g> $h$ x_y", "line\nbreak", "長い名前", "long " * 100, "broken \udcff", r"$\frac$"]
    counts = [90, 50, 20, 10, 5, 2]
    page = report(tmp_path, counts, evaluation_of(counts), names)
    rows = table_rows(page)
    assert r"a\|b \`c\` \*d\* \[e\](f) \<g\> \$h\$ x\_y" in rows
    assert "line break" in rows
    assert "長い名前" in rows
    assert max(map(len, rows)) <= 80
    assert pictures(tmp_path)


def test_a_model_without_mistakes(tmp_path, drawn):
    labels = torch.arange(20) % 2
    logits = 9 * torch.nn.functional.one_hot(labels)[:, None].float()
    assert "every image is classified right" in report(tmp_path, [30, 20], evaluate_logits(logits, labels, [30, 20]))


@pytest.mark.parametrize("num_classes", [7, 60])
def test_classes_stand_from_common_to_rare(tmp_path, drawn, num_classes):
    counts = np.random.default_rng(0).permutation(np.arange(1, num_classes + 1) * 4).tolist()
    result = evaluation_of(counts, num_images=5 * num_classes, tested=range(num_classes))
    plots.plot_classes(tmp_path, result, [str(k) for k in range(num_classes)], counts)
    points = np.concatenate([c.get_offsets() for c in drawn[0].axes[0].collections if len(c.get_offsets()) > 1])
    order = sorted(range(num_classes), key=lambda k: -counts[k])
    expected = [(rank, 100 * result.per_class[k]) for rank, k in enumerate(order, start=1)]
    assert np.allclose(sorted(map(tuple, points)), expected)
    names = [tick.get_text() for tick in drawn[0].axes[1].get_xticklabels()]
    assert (names == [str(k) for k in order]) == (num_classes <= 20)


def test_confusion_rows_are_shares_of_the_true_class(tmp_path, drawn):
    counts = [5, 200, 50]
    result = evaluation_of(counts)
    plots.plot_confusion(tmp_path, result, ["few", "many", "medium"], counts)
    order = [1, 2, 0]
    expected = 100 * result.confusion / result.confusion.sum(axis=1, keepdims=True)
    image = drawn[0].axes[0].images[0].get_array()
    assert np.allclose(image, expected[np.ix_(order, order)])
    assert [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()] == ["many", "medium", "few"]


def test_a_large_confusion_matrix_is_binned_and_says_so(tmp_path, drawn):
    counts = list(range(1000, 0, -1))
    labels = torch.arange(1000)
    logits = torch.nn.functional.one_hot((labels + 1) % 1000, 1000)[:, None].float()  # every class taken for the next
    result = evaluate_logits(logits, labels, counts)
    plots.plot_confusion(tmp_path, result, [""] * 1000, counts)
    image = np.asarray(drawn[0].axes[0].images[0].get_array())
    expected = 80 * np.eye(200) + 20 * np.roll(np.eye(200), 1, axis=1)  # of 5 neighbours, one is taken for the next 5
    assert np.allclose(image, expected)
    assert "about 5 of 1,000 classes" in drawn[0].axes[0].get_title(loc="left")


def test_history_shows_what_there_is(tmp_path, drawn):
    plots.plot_history(tmp_path, HISTORY)
    loss, accuracy, rate = drawn[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.5], [3, 1.0]]
    shown = {line.get_label(): line.get_xydata().tolist() for line in accuracy.lines}
    assert shown == {"training": [[1, 20], [2, 40], [3, 50]], "validation": [[2, 30], [3, 35]]}
    assert rate.get_yscale() == "log"


def test_reliability_bars_are_the_accuracy_of_the_bins(tmp_path, drawn):
    result = evaluation_of(COUNTS)
    plots.plot_calibration(tmp_path, result)
    top, bottom = drawn[0].axes
    bars = {bars.get_label(): [bar.get_height() for bar in bars] for bars in top.containers}
    filled = result.calibration.counts > 0
    assert bars["accuracy"] == pytest.approx((100 * result.calibration.accuracy[filled]).tolist())
    gaps = (result.calibration.confidence - result.calibration.accuracy)[filled].abs()
    assert sum(bars.get("more sure than right", []) + bars.get("more right than sure", [])) == pytest.approx(
        float(100 * gaps.sum())
    )
    assert f"calibration error {100 * result.ece:.1f} %" in top.get_title(loc="left")
    assert sum(bar.get_height() for bar in bottom.patches) == pytest.approx(100)


def test_experts_stand_beside_the_ensemble(tmp_path, drawn):
    counts = [500, 300, 50]
    result = evaluation_of(counts)
    plots.plot_experts(tmp_path, result)
    bars = {bars.get_label(): [bar.get_height() for bar in bars] for bars in drawn[0].axes[0].containers}
    assert list(bars) == ["expert 1", "expert 2", "expert 3", "ensemble"]
    second = result.experts[1]
    assert bars["expert 2"] == pytest.approx([100 * second.accuracy, 100 * second.many, 100 * second.medium, 0])
    assert "n/a" in [text.get_text() for text in drawn[0].axes[0].texts]  # no class is few-shot
