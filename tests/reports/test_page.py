"""The report of a run, and its plots."""

import dataclasses
import json
import math
import re

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from helpers.reports import COUNTS, SPEED, evaluation_of, routing_of

from longtail.config.schema import Config, EvaluationConfig
from longtail.evaluation.metrics import evaluate_logits
from longtail.evaluation.throughput import Speed
from longtail.reports import plots
from longtail.reports.page import RunReport, write_report
from longtail.utils.format import percent

PNG = b"\x89PNG\r\n\x1a\n"
HISTORY = [
    {"epoch": 1, "loss": 2.0, "accuracy": 0.2, "learning_rate": 0.1, "seconds": 70.0},
    {"epoch": 2, "loss": 1.5, "accuracy": 0.4, "learning_rate": 0.1, "seconds": 70.0, "val_accuracy": 0.3},
    {"epoch": 3, "loss": 1.0, "accuracy": 0.5, "learning_rate": 0.001, "seconds": 70.0, "val_accuracy": 0.35},
]
ALL_PLOTS = ["calibration", "classes", "confusion", "experts", "history"]


def report(folder, class_counts, evaluation, *, names=None, config=None, history=HISTORY, val=None, **options):
    """Writes a report and returns its text."""
    evaluations = {"test": evaluation} | ({"val": val} if val else {})
    names = names or [f"class {k}" for k in range(len(class_counts))]
    environment = {"device": "cpu", "packages": {"torch": "2.15"}}
    write_report(
        folder, RunReport(config or Config(), evaluations, names, class_counts, history, environment, **options)
    )
    return (folder / "report.md").read_text(encoding="utf-8")


def plot_names(folder):
    """Names of the plots, which must be PNG files."""
    files = sorted((folder / "plots").glob("*.png"))
    assert all(file.read_bytes().startswith(PNG) for file in files)
    return [file.stem for file in files]


def table_rows(page):
    """Cells of all table rows by their first cell. All rows of a table must have the same number of cells."""
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


def test_classes_without_test_images_are_counted(tmp_path, drawn):
    evaluation = evaluation_of(COUNTS, tested=[0, 1, 2, 3, 4, 5, 6, 7, 0, 1])
    page = report(tmp_path, COUNTS, evaluation, predictions="each.csv")
    rows = table_rows(page)
    assert [rows[shot][0][1] for shot in ("many", "medium", "few")] == ["3", "3", "4 (2 tested)"]
    assert "[each.csv](each.csv)" in page


@pytest.fixture
def drawn(monkeypatch):
    """Collects the figures instead of writing them."""
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path, legend_columns=0: figures.append(figure))
    return figures


def test_page_has_the_numbers(tmp_path, drawn):
    result, validation = evaluation_of(COUNTS), evaluation_of(COUNTS, seed=1)
    config = dataclasses.replace(Config(), name="birds", seed=7)
    page = report(tmp_path, COUNTS, result, config=config, val=validation)
    assert page.startswith("# birds\n")
    for fact in (
        "seed 7",
        "3 of 200 epochs in 4 min",
        "1,162 training images of 10 classes",
        "250 to 1",
        "200 test images",
    ):
        assert fact in page

    rows = table_rows(page)
    for split, scores in (("test", result), ("val", validation)):
        accuracies = [percent(value) for value in (scores.accuracy, scores.balanced, scores.many, scores.medium)]
        assert rows[split][0][:5] == ["200", *accuracies]
        assert rows[split][0][-3:] == [percent(scores.top5), percent(scores.ece), f"{scores.nll:.3f}"]
    assert rows["expert 2"][0][0] == percent(result.experts[1].accuracy)
    assert rows["few"][0][:5] == ["under 20", "4", "32", "80", percent(result.few)]
    assert sum(map(float, rows["few"][0][5:])) == pytest.approx(100, abs=0.2)
    few_as_many = result.confusion[6:, :3].sum() / result.confusion[6:].sum()
    assert rows["few"][0][5] == percent(few_as_many)
    assert "- device: cpu" in page
    assert "- packages: torch 2.15" in page

    lowest = min(range(10), key=lambda k: result.per_class[k])
    assert [f"{COUNTS[lowest]:,}", "20", percent(result.per_class[lowest])] in rows[f"class {lowest}"]
    first = result.frequent_confusions()[0]
    share = percent(first["count"] / 20)
    assert [f"class {first['predicted']}", str(first["count"]), share] in rows[f"class {first['true']}"]

    settings = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    assert settings == json.loads(json.dumps(dataclasses.asdict(config)))


def test_page_has_the_calibration_error_without_temperature(tmp_path, drawn):
    result, routing = evaluation_of(COUNTS), routing_of(COUNTS)
    page = report(tmp_path, COUNTS, result, routing=routing)
    assert "temperature scaling" not in page
    assert f"{percent(routing.ece)} %." in page
    result = dataclasses.replace(result, temperature=1.2345, uncalibrated_ece=0.777)
    page = report(tmp_path, COUNTS, result, routing=dataclasses.replace(routing, uncalibrated_ece=0.666))
    assert "temperature, 1.234. " in page
    assert "test 77.7 %" in page
    assert "66.6 % without temperature scaling" in page


def test_page_has_the_views(tmp_path, drawn):
    routing, pages = routing_of(COUNTS), []
    for views, number in (("one", 1), ("ten-crop", 10)):
        config = dataclasses.replace(Config(), evaluation=EvaluationConfig(views=views))
        views_routing = dataclasses.replace(routing, num_views=number)
        pages.append(report(tmp_path, COUNTS, evaluation_of(COUNTS), config=config, routing=views_routing))
    for fact in ("10 views of each image: ten-crop", "all 10 views"):
        assert [fact in page for page in pages] == [False, True]


def test_sections_have_searchable_headings(tmp_path, drawn):
    page = report(tmp_path, COUNTS, evaluation_of(COUNTS), routing=routing_of(COUNTS))
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [
        *("Results", "Accuracy by class size", "Experts", "Routing"),
        *("Plots", "Most common errors", "Settings", "Environment"),
    ]


def test_all_plots_are_written_and_shown(tmp_path):
    settings = dict(matplotlib.rcParams)
    page = report(tmp_path, COUNTS, evaluation_of(COUNTS))
    assert plot_names(tmp_path) == ALL_PLOTS
    assert sorted(re.findall(r"\(plots/(\w+)\.png\)", page)) == ALL_PLOTS
    assert dict(matplotlib.rcParams) == settings


def broken_evaluation():
    logits = torch.randn(30, 2, 3)
    logits[0] = math.nan
    return evaluate_logits(logits, torch.arange(30) % 3, [30, 20, 10])


DIVERGED = [*HISTORY, {**HISTORY[0], "epoch": 4, "loss": math.nan}]
EDGES = {
    # name: (class counts, evaluation, history, plots without content)
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
def test_unusual_evaluations(tmp_path, edge):
    counts, make, history, missing = EDGES[edge]
    page = report(tmp_path, counts, make(counts), history=history)
    expected = set(ALL_PLOTS) - missing
    assert set(plot_names(tmp_path)) == expected == set(re.findall(r"\(plots/(\w+)\.png\)", page))
    results = page.split("## Settings")[0]
    assert not re.search(r"\bnan\b|\binf\b|None", results)
    table_rows(page)


@pytest.mark.filterwarnings("error")
def test_unusual_class_names(tmp_path):
    names = ["a|b `c` *d* [e](f) <g> $h$ x_y", "line\nbreak", "長い名前", "long " * 100, "broken \udcff", r"$\frac$"]
    counts = [90, 50, 20, 10, 5, 2]
    page = report(tmp_path, counts, evaluation_of(counts), names=names)
    rows = table_rows(page)
    assert r"a\|b \`c\` \*d\* \[e\](f) \<g\> \$h\$ x\_y" in rows
    assert "line break" in rows
    assert "長い名前" in rows
    assert max(map(len, rows)) <= 80
    assert plot_names(tmp_path)


def test_a_model_without_errors(tmp_path, drawn):
    labels = torch.arange(20) % 2
    logits = 9 * torch.nn.functional.one_hot(labels)[:, None].float()
    page = report(tmp_path, [30, 20], evaluate_logits(logits, labels, [30, 20]))
    assert "every image is classified correctly" in page


@pytest.mark.parametrize("num_classes", [7, 60])
def test_classes_are_sorted_by_size(tmp_path, drawn, num_classes):
    counts = np.random.default_rng(0).permutation(np.arange(1, num_classes + 1) * 4).tolist()
    result = evaluation_of(counts, num_images=5 * num_classes, tested=range(num_classes))
    plots.plot_classes(tmp_path, result, [str(k) for k in range(num_classes)], counts)
    points = np.concatenate([c.get_offsets() for c in drawn[0].axes[0].collections if len(c.get_offsets()) > 1])
    order = sorted(range(num_classes), key=lambda k: -counts[k])
    expected = [(rank, 100 * result.per_class[k]) for rank, k in enumerate(order, start=1)]
    assert np.allclose(sorted(map(tuple, points)), expected)
    names = [tick.get_text() for tick in drawn[0].axes[1].get_xticklabels()]
    assert (names == [str(k) for k in order]) == (num_classes <= 20)


def test_confusion_rows_are_percentages_of_the_true_class(tmp_path, drawn):
    counts = [5, 200, 50]
    result = evaluation_of(counts)
    plots.plot_confusion(tmp_path, result, ["few", "many", "medium"], counts)
    order = [1, 2, 0]
    expected = 100 * result.confusion / result.confusion.sum(axis=1, keepdims=True)
    image = drawn[0].axes[0].images[0].get_array()
    assert np.allclose(image, expected[np.ix_(order, order)])
    assert [tick.get_text() for tick in drawn[0].axes[0].get_yticklabels()] == ["many", "medium", "few"]


def test_a_large_confusion_matrix_is_binned(tmp_path, drawn):
    counts = list(range(1000, 0, -1))
    labels = torch.arange(1000)
    logits = torch.nn.functional.one_hot((labels + 1) % 1000, 1000)[
        :, None
    ].float()  # every class is predicted as the next one
    result = evaluate_logits(logits, labels, counts)
    plots.plot_confusion(tmp_path, result, [""] * 1000, counts)
    image = np.asarray(drawn[0].axes[0].images[0].get_array())
    expected = 80 * np.eye(200) + 20 * np.roll(
        np.eye(200), 1, axis=1
    )  # one class of a cell is predicted in the next cell
    assert np.allclose(image, expected)
    assert "about 5 of 1,000 classes" in drawn[0].axes[0].get_title(loc="left")


def test_history_plot(tmp_path, drawn):
    plots.plot_history(tmp_path, HISTORY)
    loss, accuracy, rate = drawn[0].axes
    assert loss.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.5], [3, 1.0]]
    shown = {line.get_label(): line.get_xydata().tolist() for line in accuracy.lines}
    assert shown == {"training": [[1, 20], [2, 40], [3, 50]], "validation": [[2, 30], [3, 35]]}
    assert rate.get_yscale() == "log"


def test_calibration_bars_are_accuracies_and_gaps(tmp_path, drawn):
    result = evaluation_of(COUNTS)
    plots.plot_calibration(tmp_path, result)
    top, bottom = drawn[0].axes
    bars = {bars.get_label(): [bar.get_height() for bar in bars] for bars in top.containers}
    filled = result.calibration.counts > 0
    assert bars["accuracy"] == pytest.approx((100 * result.calibration.accuracy[filled]).tolist())
    gaps = (result.calibration.confidence - result.calibration.accuracy)[filled].abs()
    gap_bars = bars.get("overconfident", []) + bars.get("underconfident", [])
    assert sum(gap_bars) == pytest.approx(float(100 * gaps.sum()))
    assert f"Calibration error {100 * result.ece:.1f} %" in top.get_title(loc="left")
    assert sum(bar.get_height() for bar in bottom.patches) == pytest.approx(100)


def test_experts_are_plotted_beside_the_ensemble(tmp_path, drawn):
    counts = [500, 300, 50]
    result = evaluation_of(counts)
    plots.plot_experts(tmp_path, result)
    bars = {bars.get_label(): [bar.get_height() for bar in bars] for bars in drawn[0].axes[0].containers}
    assert list(bars) == ["expert 1", "expert 2", "expert 3", "ensemble"]
    second = result.experts[1]
    assert bars["expert 2"] == pytest.approx([100 * second.accuracy, 100 * second.many, 100 * second.medium, 0])
    assert "n/a" in [text.get_text() for text in drawn[0].axes[0].texts]  # no class is few-shot


def test_routing_section(tmp_path, drawn):
    routing = routing_of(COUNTS, images_per_second=SPEED, chosen_on="val")
    page = report(tmp_path, COUNTS, evaluation_of(COUNTS), routing=routing)
    section = page.split("## Routing")[1].split("\n## ")[0]
    for fact in ("threshold 0.6,", "chosen on the val images", "128 images", "11 rounds", "(plots/routing.png)"):
        assert fact in section
    assert len(table_rows(section)[f"routed: {routing.mean_experts:.2f}"][0]) == 8
    without_goal = report(tmp_path, COUNTS, evaluation_of(COUNTS), routing=routing_of(COUNTS))
    assert "was set, not chosen" in without_goal
    assert "Images/s" not in without_goal


def test_without_a_router_there_is_nothing_about_routing(tmp_path, drawn):
    page = report(tmp_path, COUNTS, evaluation_of(COUNTS), speed=Speed([99.0, 50.0, 30.0], None, 8, 1))
    assert "rout" not in page.split("## Settings")[0]
    assert "Images/s with batches of 8: 1 expert 99, 2 experts 50, 3 experts 30." in page


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "options", [{"router": 9.0}, {"router": -9.0}, {"num_experts": 6, "tested": [0] * 9 + [1]}, {"num_images": 1}]
)
def test_unusual_routing(tmp_path, options):
    plots.plot_tradeoff(tmp_path / "routing.png", routing_of(COUNTS, **options))
    assert (tmp_path / "routing.png").read_bytes().startswith(PNG)


def test_routing_reports_are_json_ready():
    routing = routing_of(COUNTS, images_per_second=SPEED, chosen_on="val")
    plain = routing.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["balanced"] == routing.balanced
    assert plain["chosen_on"] == "val"
    assert plain["images_per_second"]["prefixes"] == list(SPEED.prefixes)
    assert plain["curve"][0] == routing.curve[0]._asdict()
    assert routing_of(COUNTS).as_dict()["images_per_second"] is None


def test_tradeoff_plot(tmp_path, drawn):
    routing = routing_of(COUNTS)
    plots.plot_tradeoff(tmp_path, routing)
    axes = drawn[0].axes[0]
    shown = {line.get_label(): line.get_xydata() for line in axes.lines}
    expected = {
        "router": [(point.cost, point.balanced) for point in routing.curve],
        "random routing": routing.random_curve,
        "oracle (knows the labels)": routing.oracle_curve,
        "no router": [(prefix.cost, prefix.balanced) for prefix in routing.prefixes],
        "threshold 0.6": [(routing.cost, routing.balanced)],
    }
    assert set(shown) == set(expected)
    for name, points in expected.items():
        assert np.allclose(shown[name], np.array(points) * (1e-6, 100)), name
    assert axes.get_xlabel() == "multiply-accumulates per image (M)"
