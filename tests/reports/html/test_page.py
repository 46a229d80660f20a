"""The HTML report of a run: its facts, compared with loops over images, and what it must not hold."""

import base64
import dataclasses
import io
import json
import re

import numpy as np
import pytest
import torch
from helpers.html_pages import Page
from helpers.reports import COUNTS, SPEED, cost_of, saved_report
from PIL import Image
from scipy.stats import binomtest

from longtail.config.schema import Config, EvaluationConfig
from longtail.data.splits import ImageSplit
from longtail.evaluation.image_outputs import image_outputs
from longtail.evaluation.metrics import evaluate_logits
from longtail.evaluation.outputs import ModelOutputs
from longtail.reports.html.budget import budget_points
from longtail.reports.html.examples import confused_pairs, disagreements, images_of, surest_mistakes, wrong_labels
from longtail.reports.html.page import write_html

HISTORY = [{"epoch": k, "loss": 2 / k, "accuracy": 0.1 * k, "seconds": 70.0, "learning_rate": 0.1} for k in (1, 2, 3)]
MAX_SIZE = 3_000_000


def write(folder, report, outputs, images=None):
    """Writes a page and returns its text."""
    write_html(folder, report, outputs, images)
    return (folder / "report.html").read_text(encoding="utf-8")


def pixels(number, side=8):
    return np.random.default_rng(0).integers(0, 256, (number, side, side, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A report, the saved outputs of its images, the images, and the text of its page."""
    report, outputs = saved_report(COUNTS, history=HISTORY, temperature=1.5)
    images = ImageSplit(outputs.labels.numpy(), pixels(len(outputs.labels)))
    return report, outputs, images, write(tmp_path_factory.mktemp("page"), report, outputs, images)


def test_the_table_of_classes(example):
    report, outputs, _, text = example
    rows = Page(text).tables["Test accuracy of 10 classes"][1:]
    assert [row[0] for row in rows] == report.class_names  # from the most common class to the rarest
    labels, predicted, experts = outputs.labels.tolist(), outputs.predictions.tolist(), outputs.experts.tolist()
    for k, row in enumerate(rows):
        members = [n for n, label in enumerate(labels) if label == k]
        hits = sum(predicted[n] == k for n in members)
        limits = binomtest(hits, len(members)).proportion_ci(0.95, "wilson")
        by_expert = [sum(experts[n][e] == k for n in members) for e in range(3)]
        best = [e + 1 for e in range(3) if by_expert[e] == max(by_expert)]
        wrong = [predicted[n] for n in members if predicted[n] != k]
        other = min(set(wrong), key=lambda c: (-wrong.count(c), c))
        assert row[1:] == [
            f"{100 * hits / len(members):.1f}",
            f"{100 * limits.low:.1f} to {100 * limits.high:.1f}",
            f"{COUNTS[k]:,}",
            str(len(members)),
            report.evaluation.shots[k],
            f"class {other}",
            f"{100 * wrong.count(other) / len(members):.0f} %",
            "all" if len(best) == 3 else ", ".join(map(str, best)),
        ]


def test_the_result_in_one_sentence(example):
    report, outputs, _, text = example
    hits = int((outputs.predictions == outputs.labels).sum())
    limits = binomtest(hits, 200).proportion_ci(0.95, "wilson")
    lead = " ".join(Page(text).text.split("Report of a run")[1].split("The intervals")[0].split())
    assert f"{hits / 2:.1f} % of 200 test images" in lead
    assert f"{100 * limits.low:.1f} to {100 * limits.high:.1f} %" in lead
    assert f"{report.routing.mean_experts:.2f} of 3 experts" in lead
    assert f"{100 * report.routing.cost / cost_of(3).total:.0f} % of the computation" in lead


def test_the_slider_follows_the_measured_curve(example):
    report, outputs, _, text = example
    data = json.loads(re.search(r'<script type="application/json" id="budget-data">(.*?)</script>', text)[1])
    points, chosen = budget_points(outputs, report.routing, report.cost, COUNTS, report.evaluation.thresholds)
    curve = {point.threshold: point for point in report.routing.curve}
    assert set(curve) <= {point.threshold for point in points}
    assert len(points) == len(data["positions"]) == len({*curve, 0.6})
    costs = report.cost.routed_costs
    for point in points[:: len(points) // 7]:
        used = [
            1 + next((k for k in range(2) if row[k].sigmoid() <= point.threshold), 2) for row in outputs.router_logits
        ]
        right = [outputs.prefixes[n, k - 1] == outputs.labels[n] for n, k in enumerate(used)]
        few = [r for r, label in zip(right, outputs.labels, strict=True) if COUNTS[label] < 20]
        assert point.shares == pytest.approx([used.count(k) / 200 for k in (1, 2, 3)])
        assert point.cost == pytest.approx(sum(costs[k - 1] for k in used) / 200)
        assert point.scores.accuracy == pytest.approx(sum(right) / 200)
        assert point.scores.few == pytest.approx(sum(few) / len(few))  # as many images of each class
        if point.threshold in curve:
            assert point.scores.balanced == pytest.approx(curve[point.threshold].balanced)
    assert points[chosen].threshold == 0.6
    assert points[chosen].images_per_second == pytest.approx(SPEED.routed)
    seconds = [sum(s / r for s, r in zip(p.shares, SPEED.prefixes, strict=True)) for p in (points[0], points[chosen])]
    assert points[0].images_per_second == pytest.approx(SPEED.routed * seconds[1] / seconds[0])
    texts = data["positions"][chosen][2]
    assert texts[2:5] == [
        f"{report.routing.mean_experts:.2f}",
        f"{100 * report.routing.accuracy:.1f}",
        f"{100 * report.routing.balanced:.1f}",
    ]


def test_dots_name_their_experts(example):
    titles = re.findall("<title>([^<]*), no router</title>", example[3])
    assert titles == ["1 expert", "2 experts", "3 experts"]


def small_outputs():
    """Eight images of three classes, three experts: who predicts what with which probability."""
    experts = torch.tensor([[0, 0, 0], [0, 1, 2], [1, 1, 0], [1, 1, 1], [2, 2, 1], [0, 0, 0], [1, 2, 2], [2, 2, 2]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    logits = 3.0 * torch.nn.functional.one_hot(experts, 3) * torch.linspace(0.5, 1.5, 8)[:, None, None]
    return image_outputs(ModelOutputs(logits, labels), "")


def test_the_chosen_images():
    outputs = small_outputs()
    wrong = [n for n in range(8) if outputs.predictions[n] != outputs.labels[n]]
    assert surest_mistakes(outputs) == sorted(wrong, key=lambda n: -float(outputs.probabilities[n]))
    assert surest_mistakes(outputs, 2) == [5, 3]
    # Image 1 has three pairs of experts that disagree, the others two; image 6 is surer than 4, and 4 than 2.
    assert disagreements(outputs) == [1, 6, 4, 2]
    assert images_of(outputs, 0, 1) == [3, 2, 1 if outputs.predictions[1] == 0 else 0]
    assert wrong_labels(outputs) is None


def test_the_most_confused_pair(example):
    report, _, _, text = example
    matrix = report.evaluation.confusion
    both = {(i, j): matrix[i, j] + matrix[j, i] for i in range(10) for j in range(i)}
    pairs = confused_pairs(report.evaluation)
    assert [there[2] + back[2] for there, back in pairs] == sorted(both.values(), reverse=True)[:6]
    for there, back in pairs:
        assert there[:2] == back[1::-1]
        assert all(count == matrix[true, predicted] for true, predicted, count in (there, back))
    first, second, _ = pairs[0][0]
    assert f"<h3><bdi>class {first}</bdi> and <bdi>class {second}</bdi></h3>" in text


def test_probabilities_that_are_not_finite(tmp_path):
    report, outputs = saved_report(COUNTS)
    outputs.probabilities[3], outputs.uncalibrated[3] = torch.nan, torch.nan
    evaluation = dataclasses.replace(report.evaluation, calibration=None, ece=None, uncalibrated_ece=None, nll=None)
    text = write(tmp_path, dataclasses.replace(report, evaluations={"test": evaluation}), outputs)
    assert "calibration-title" not in text
    assert not re.search(r"\bnan\b", text)


# ---- pictures ----


def test_pictures_are_those_of_the_images(example):
    _, outputs, images, text = example
    first = surest_mistakes(outputs)[0]
    section = text.split('id="mistakes"')[1].split("</section>")[0]
    source = re.search(r'src="data:image/webp;base64,([^"]+)"', section)[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(source))).convert("RGB"))
    assert (picture == images.pixels[first]).all()  # small images are kept exactly
    assert f"test image {first}" in section


def test_large_image_files_become_small_pictures(tmp_path):
    report, outputs = saved_report(COUNTS)
    noise = Image.fromarray(pixels(1, 300)[0])
    noise.save(tmp_path / "noise.png")
    (tmp_path / "damaged.png").write_bytes(b"no image")
    paths = np.array([tmp_path / ("damaged.png" if n % 2 else "noise.png") for n in range(200)], dtype=object)
    config = dataclasses.replace(Config(), data=dataclasses.replace(Config().data, root=str(tmp_path)))
    report = dataclasses.replace(report, config=config)
    text = write(tmp_path, report, outputs, ImageSplit(outputs.labels.numpy(), paths=paths))
    page = Page(text)
    pictures = page.attributes("img")
    assert 20 < len(pictures) < 90
    assert {picture["width"] for picture in pictures} == {"144"}
    assert max(len(picture["src"]) for picture in pictures) < 15_000
    assert "damaged.png" in page.text
    assert str(tmp_path) not in page.text.split("Settings and environment")[0]


def test_without_images_there_are_no_pictures(tmp_path):
    text = write(tmp_path, *saved_report(COUNTS))
    assert not Page(text).attributes("img")
    assert "The test images could not be read" in text


# ---- what the page must not hold ----

HOSTILE = [
    "<script>alert(1)</script>",
    "</script><script>alert(2)</script>",
    "\"quotes\" & 'quotes' onload=alert(3)",
    "<img src=x onerror=alert(4)>",
    "right to left \u202e gnp.exe",
    "line\nbreak \x00\x1b[31m",
    "broken \udcff bytes",
    "{{ 7 * 7 }} {% raw %}",
    "عربي",
    "long " * 200,
]


def test_names_are_escaped(tmp_path):
    config = dataclasses.replace(Config(), name="<b>run</b>")
    report, outputs = saved_report(COUNTS, HOSTILE, config=config)
    report = dataclasses.replace(report, environment={"<i>key</i>": ["<u>value</u>"]}, predictions="predictions.csv")
    page = Page(write(tmp_path, report, outputs))
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "budget-data"}, {}]
    assert {"b", "i", "u", "img"}.isdisjoint(tag for tag, _ in page.elements)
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    names = [row[0] for row in page.tables["Test accuracy of 10 classes"][1:]]
    assert names[:4] == HOSTILE[:4]
    assert names[4] == "right to left \ufffd gnp.exe"
    assert names[5] == "line break \ufffd\ufffd[31m"
    assert names[6] == "broken ? bytes"
    assert names[7] == HOSTILE[7]
    assert names[8] == HOSTILE[8]
    assert len(names[9]) == 80
    # Each name is isolated, so that its direction of writing does not change the text around it.
    assert len(page.attributes("bdi")) > 30


def test_nothing_is_loaded(example):
    page = Page(example[3])
    policy = next(a["content"] for a in page.attributes("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert not [a for _, a in page.elements if "style" in a]
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "data", "action"):
            assert re.match(r"data:|#|predictions\.csv$", attributes.get(name, "#")), attributes
    assert "url(" not in example[3]
    assert "@import" not in example[3]


def test_the_structure_is_for_everyone(example):
    page = Page(example[3])
    tags = [tag for tag, _ in page.elements]
    for tag in ("header", "nav", "main", "footer", "h1"):
        assert tags.count(tag) == 1, tag
    assert page.attributes("html") == [{"lang": "en"}]
    assert tags.count("table") == tags.count("caption") == len(page.tables)
    heads = page.attributes("th")
    assert all(head.get("scope") in ("col", "row") for head in heads)
    assert sum("aria-sort" in head for head in heads) == 1
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    for _, attributes in page.elements:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, identifiers[0]) in identifiers
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in identifiers
    assert all(svg.get("aria-labelledby") or svg.get("aria-label") for svg in page.attributes("svg"))


# ---- unusual runs ----

EDGES = {
    "one expert, no router": ([90, 10], {"num_experts": 1, "routed": False}),
    "experts without a router": (COUNTS, {"routed": False}),
    "six experts": (COUNTS, {"num_experts": 6}),
    "one image": (COUNTS, {"num_images": 1}),
    "classes without training images": ([300, 0, 0], {}),
    "classes without test images": (COUNTS, {"tested": [0] * 9 + [4]}),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("edge", EDGES)
def test_unusual_runs(tmp_path, edge):
    counts, options = EDGES[edge]
    report, outputs = saved_report(counts, **options)
    text = write(tmp_path, report, outputs)
    visible = Page(text).text.split("All settings")[0]
    assert not re.search(r"\bnan\b|\binf\b|None(?!:| found)", visible)
    assert ('id="budget"' in text) == (report.routing is not None)
    assert ("disagreements-title" in text) == (len(report.evaluation.experts) > 1)
    assert not re.search(r'="[^"]*(nan|inf)[^"]*"', text.split("</style>")[1].split("<script>")[0])


def test_a_model_without_errors(tmp_path):
    report, _ = saved_report([30, 20], routed=False)
    labels = torch.arange(20) % 2
    perfect = ModelOutputs(9 * torch.nn.functional.one_hot(labels, 2)[:, None].float(), labels)
    evaluation = evaluate_logits(perfect.logits, labels, [30, 20])
    report = dataclasses.replace(report, evaluations={"test": evaluation})
    text = write(tmp_path, report, image_outputs(perfect, ""))
    assert text.count("every test image is classified correctly") == 2
    assert "100.0" in text


def test_views_are_named(tmp_path):
    config = dataclasses.replace(Config(), evaluation=EvaluationConfig(views="ten-crop"))
    assert "10 (ten-crop)" in write(tmp_path, *saved_report(COUNTS, config=config))


@pytest.mark.slow
def test_the_size_of_a_report_on_a_thousand_classes(tmp_path):
    counts = [max(1, int(1280 * 0.004 ** (k / 1000))) for k in range(1000)]
    names = [f"a species of birds with a long name, number {k}, " + "x" * 40 for k in range(1000)]
    history = [HISTORY[0] | {"epoch": k, "loss": 1 / k} for k in range(1, 2001)]
    report, outputs = saved_report(counts, names, num_images=5000, history=history)
    Image.fromarray(pixels(1, 400)[0]).save(tmp_path / "noise.jpg")
    paths = np.array([tmp_path / "noise.jpg"] * 5000, dtype=object)
    write(tmp_path, report, outputs, ImageSplit(outputs.labels.numpy(), paths=paths))
    assert (tmp_path / "report.html").stat().st_size < MAX_SIZE
