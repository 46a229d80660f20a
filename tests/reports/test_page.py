import dataclasses
import io
import json
import math
import re

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from longtail.config.schema import Config
from longtail.evaluation import routing
from longtail.evaluation.metrics import evaluate_logits
from longtail.evaluation.routing_report import RoutingReport
from longtail.evaluation.throughput import Speed
from longtail.reports import plots
from longtail.reports.page import routing_summary, summary, write_report

PNG = b"\x89PNG\r\n\x1a\n"
HISTORY = [
    {"epoch": 1, "loss": 2.0, "accuracy": 0.2, "learning_rate": 0.1, "seconds": 70.0},
    {"epoch": 2, "loss": 1.5, "accuracy": 0.4, "learning_rate": 0.1, "seconds": 70.0, "val_accuracy": 0.3},
    {"epoch": 3, "loss": 1.0, "accuracy": 0.5, "learning_rate": 0.001, "seconds": 70.0, "val_accuracy": 0.35},
]


def outputs_of(class_counts, num_experts=3, num_images=200, tested=None, seed=0):
    """Logits and labels of test images that cover the ``tested`` classes, all by default."""
    num_classes = len(class_counts)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.as_tensor(range(num_classes) if tested is None else tested)[torch.arange(num_images) % num_classes]
    logits = torch.randn(num_images, num_experts, num_classes, generator=generator)
    logits[torch.arange(num_images), :, labels] += 1.5
    return logits, labels


def evaluation_of(class_counts, *args, **options):
    return evaluate_logits(*outputs_of(class_counts, *args, **options), class_counts)


def routing_of(class_counts, num_experts=3, router=None, threshold=0.6, speed=None, chosen_on=None, **options):
    """The routing of the images of `evaluation_of` by a router that guesses, or that says ``router`` of all."""
    logits, labels = outputs_of(class_counts, num_experts, **options)
    router_logits = torch.randn(len(labels), num_experts - 1, generator=torch.Generator().manual_seed(1))
    if router is not None:
        router_logits.fill_(router)
    prefix_costs = [50e6 + 25.3e6 * k for k in range(num_experts)]
    costs = [cost + 1e4 for cost in prefix_costs]
    said = logits, router_logits, labels
    result = routing.routing(*said, class_counts, costs, prefix_costs, threshold)
    return RoutingReport.of(result, *said, costs, speed=speed, chosen_on=chosen_on)


def report(
    folder, class_counts, evaluation, names=None, history=HISTORY, config=None, routing=None, predictions=None, **more
):
    write_report(
        folder,
        config=dataclasses.asdict(config or Config()),
        evaluations={"test": evaluation, **more},
        class_names=names or [f"class {k}" for k in range(len(class_counts))],
        class_counts=class_counts,
        history=history,
        environment={"torch": "2.15", "device": "cpu"},
        routing=routing,
        predictions=predictions,
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


def test_classes_without_test_images_are_not_called_tested(tmp_path):
    page = report(
        tmp_path, COUNTS, evaluation_of(COUNTS, tested=[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]), predictions="each.csv"
    )
    rows = table_rows(page)
    assert [rows[shot][0][1] for shot in ("many", "medium", "few")] == ["3", "3", "4 (2 tested)"]
    assert "What is said of each test image: [each.csv](each.csv)." in page


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
    assert settings == json.loads(json.dumps(dataclasses.asdict(config)))


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


SPEED = Speed(prefixes=(12345.6, 812.3, 45.67), routed=7000.0, batch_size=128, rounds=11)


def routing_rows(routing, speeds):
    """Cells of the routing's table as they should be, by their first."""
    result = routing.result
    names = ["1 expert", *(f"{k} experts" for k in range(2, 9))][: len(result.prefixes)]
    rows = {}
    for name, scores in zip([*names, f"routed: {result.mean_experts:.2f}"], [*result.prefixes, result], strict=True):
        fractions = (scores.accuracy, scores.balanced, scores.many, scores.medium, scores.few)
        millions = scores.cost / 1e6
        cost = f"{millions:.1f} M" if millions < 99.95 else f"{millions:.0f} M"
        rows[name] = [*map(percent, fractions), cost, f"{scores.cost / 50.01e6:.2f}×"]
    for row, speed in zip(rows.values(), speeds, strict=False):
        row.append(speed)
    return rows


SPEEDS = ["12,346", "812", "45.7", "7,000"]


def test_routing_has_its_section(tmp_path, drawn):
    routing = routing_of(COUNTS, speed=SPEED, chosen_on="val")
    page = report(tmp_path, COUNTS, evaluation_of(COUNTS), routing=routing)
    section = page.split("## Routing")[1].split("\n## ")[0]
    assert {name: [row] for name, row in routing_rows(routing, SPEEDS).items()}.items() <= table_rows(section).items()
    assert "above 0.6. This threshold was chosen on the val images." in section
    assert "128 images at a time" in section
    assert "median of 11 rounds" in section
    first, second, third = map(percent, routing.result.shares)
    assert f"1 expert {first} %, 2 experts {second} %, 3 experts {third} %" in section
    for shot, mean in routing.result.mean_experts_by_shot.items():
        assert f"{shot} {mean:.2f}" in section
    assert "(plots/routing.png)" in section


def test_routing_in_a_narrow_terminal():
    routing = routing_of(COUNTS, speed=SPEED)
    text = printed(routing_summary(routing, "a run"))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert all(" ".join([name, *row]) in lines for name, row in routing_rows(routing, SPEEDS).items())
    assert lines[0] == "a run"
    assert "experts overall balanced many medium few MACs cost images/s" in lines
    assert "…" not in text


def test_without_a_router_nothing_speaks_of_routing(tmp_path, drawn):
    assert "rout" not in report(tmp_path, COUNTS, evaluation_of(COUNTS)).split("## Settings")[0]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"router": 9.0},
        {"router": -9.0},
        {"num_experts": 2, "speed": Speed((99.0, 50.0), None, 8, 1)},
        {"num_experts": 6, "tested": [0] * 9 + [1]},
        {"num_images": 1},
    ],
)
def test_routing_of_all_kinds(tmp_path, options):
    routing = routing_of(COUNTS, **options)
    options = {key: value for key, value in options.items() if key not in ("router", "speed")}
    page = report(tmp_path, COUNTS, evaluation_of(COUNTS, **options), routing=routing, history=[])
    shown = {*page.split("## Settings")[0].split(), *printed(routing_summary(routing, "")).split()}
    assert not {"nan", "inf", "None"} & shown
    table_rows(page)
    assert "routing" in pictures(tmp_path)
    assert "threshold was given" in page


def test_a_routing_is_ready_for_json():
    routing = routing_of(COUNTS, speed=SPEED, chosen_on="val")
    plain = routing.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["balanced"] == routing.result.balanced
    assert plain["chosen_on"] == "val"
    assert plain["images_per_second"]["prefixes"] == list(SPEED.prefixes)
    assert plain["curve"][0] == routing.curve[0]._asdict()
    assert routing_of(COUNTS).as_dict()["images_per_second"] is None


def test_the_trade_off_shows_every_curve(tmp_path, drawn):
    routing = routing_of(COUNTS)
    result = routing.result
    plots.plot_tradeoff(tmp_path, result, routing.curve, routing.chance, routing.oracle)
    axes = drawn[0].axes[0]
    shown = {line.get_label(): line.get_xydata() for line in axes.lines}
    expected = {
        "router": [(point.cost, point.balanced) for point in routing.curve],
        "random routing": routing.chance,
        "best possible (knows the labels)": routing.oracle,
        "no router": [(prefix.cost, prefix.balanced) for prefix in result.prefixes],
        "threshold 0.6": [(result.cost, result.balanced)],
    }
    assert set(shown) == set(expected)
    for name, points in expected.items():
        assert np.allclose(shown[name], np.array(points) * (1e-6, 100)), name
    assert axes.get_xlabel() == "multiply-accumulates an image (M)"
