"""The pages in a real browser: tables, slider, keyboard, both colour schemes, narrow screens, and no network."""

import dataclasses
import re
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.html_pages import CHROMIUM, launch, open_page
from helpers.reports import saved_report

from longtail.config.schema import Config
from longtail.data.splits import ImageSplit
from longtail.reports.html.compare import ComparedRun, write_comparison
from longtail.reports.html.page import write_html

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]

COUNTS = [max(1, 400 - 7 * k) for k in range(60)]
NAMES = ["<script>alert(1)</script>", "<img src=x onerror=alert(2)>", *(f"class {k}" for k in range(2, 60))]
ROWS = "tbody tr:not([hidden])"


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        running = launch(playwright)
        yield running
        running.close()


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A report with its outputs, and the folder of its page and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    config = dataclasses.replace(Config(), name="a run")
    report, outputs = saved_report(COUNTS, NAMES, num_images=600, config=config, temperature=1.5)
    pixels = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), dtype=np.uint8)
    write_html(folder, report, outputs, ImageSplit(outputs.labels.numpy(), pixels))
    other = saved_report(COUNTS, NAMES, num_images=600, seed=1)
    # The labels are the same; another seed makes other predictions.
    write_comparison(
        folder / "compare.html", [ComparedRun(Path("first"), report, outputs), ComparedRun(Path("second"), *other)]
    )
    return report, outputs, folder


@contextmanager
def opened(browser, path, **options):
    """A page, which must neither report an error, nor open a dialog of a name that is a script, nor load anything."""
    page, messages, requests = open_page(browser, path, **options)
    yield page
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [path.resolve().as_uri()]
    page.close()


@pytest.fixture
def page(browser, example):
    with opened(browser, example[2] / "report.html", viewport={"width": 1280, "height": 900}) as page:
        yield page


@pytest.fixture
def comparison(browser, example):
    with opened(browser, example[2] / "compare.html", viewport={"width": 1280, "height": 900}) as page:
        yield page


def column(page, number):
    return page.locator(f"#classes {ROWS} > :nth-child({number})").all_inner_texts()


def header(page, name):
    return page.locator("#classes thead th", has_text=name)


def test_the_table_sorts(page, example):
    assert page.locator(f"#classes {ROWS}").count() == 50
    accuracy = sorted((100 * value for value in example[0].evaluation.per_class), reverse=True)
    heading = header(page, "accuracy")
    heading.get_by_role("button").click()
    assert [float(text) for text in column(page, 2)] == pytest.approx(accuracy[:50], abs=0.051)
    assert heading.get_attribute("aria-sort") == "descending"
    assert page.locator("[aria-sort]").count() == 1
    heading.get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert [float(text) for text in column(page, 2)] == pytest.approx(accuracy[::-1][:50], abs=0.051)
    header(page, "class").first.get_by_role("button").click()
    assert column(page, 1)[:4] == [*sorted(NAMES[:2], reverse=True)[::-1], "class 2", "class 3"]
    header(page, "share").get_by_role("button").click()
    shares = [int(text.split()[0]) for text in column(page, 8) if text.strip()]
    assert shares == sorted(shares, reverse=True)


def test_the_table_filters(page, example):
    page.get_by_label("Class name").fill("CLASS 4")
    assert column(page, 1) == ["class 4", *(f"class {k}" for k in range(40, 50))]
    assert "11 of 11 classes" in page.locator("[data-filter=count]").inner_text()
    page.get_by_label("Class name").fill("<img")
    assert column(page, 1) == [NAMES[1]]
    page.get_by_label("Class name").fill("")
    page.get_by_role("combobox").select_option("few")
    few = [name for name, shot in zip(NAMES, example[0].evaluation.shots, strict=True) if shot == "few"]
    assert column(page, 1) == few
    page.get_by_role("combobox").select_option("")
    more = page.locator("[data-filter=more]")
    assert more.inner_text() == "Show all 60"
    more.click()
    assert page.locator(f"#classes {ROWS}").count() == 60


def test_the_slider_moves_all_numbers(page, example):
    report = example[0]
    slider = page.get_by_label("Routing budget")
    read = lambda k: page.locator(f"[data-text='{k}']").inner_text()  # noqa: E731
    assert read(3) == f"{100 * report.routing.accuracy:.1f}"
    start = page.locator(".marker").get_attribute("cx")
    slider.focus()
    for key, point, prefix in (("Home", report.routing.curve[0], 0), ("End", report.routing.curve[-1], 2)):
        page.keyboard.press(key)
        scores = report.routing.prefixes[prefix]  # all images use the same number of experts
        assert read(0) == f"{point.cost / report.routing.curve[0].cost:.2f}"
        assert [read(k) for k in (3, 4)] == [f"{100 * value:.1f}" for value in (point.accuracy, point.balanced)]
        assert [read(k) for k in (5, 6, 7)] == [f"{100 * v:.1f}" for v in (scores.many, scores.medium, scores.few)]
        shares = [page.locator(f"[data-share='{k}']").inner_text() for k in range(3)]
        assert shares == ["100.0" if k == prefix else "0.0" for k in range(3)]
        widths = [float(part.get_attribute("width")) for part in page.locator(".stack rect").all()]
        assert widths == [100 if k == prefix else 0 for k in range(3)]
        assert f"accuracy {100 * point.accuracy:.1f} %" in slider.get_attribute("aria-valuetext")
    assert page.locator(".marker").get_attribute("cx") != start
    page.get_by_role("button", name="threshold of the model").click()
    assert page.locator(".marker").get_attribute("cx") == start


def test_pictures_are_shown(page):
    page.locator("#labels").scroll_into_view_if_needed()
    page.locator("#mistakes").scroll_into_view_if_needed()
    picture = page.locator("#mistakes img").first
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 8


@pytest.mark.parametrize("name", ["report.html", "compare.html"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_screens_and_both_schemes(browser, example, name, scheme):
    viewport = {"width": 360, "height": 740}
    with opened(browser, example[2] / name, viewport=viewport, color_scheme=scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        colors = page.evaluate(
            "[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"
        )
        ink, paper = (sum(map(int, re.findall(r"\d+", color)[:3])) for color in colors)
        assert (ink < paper) == (scheme == "light")
        assert abs(ink - paper) > 500
        if name == "report.html":  # every control can be reached with the keyboard
            focused = set()
            for _ in range(60):
                page.keyboard.press("Tab")
                focused.add(page.evaluate("document.activeElement.tagName"))
            assert {"A", "BUTTON", "INPUT", "SELECT"} <= focused


def test_printing_unfolds(page):
    assert page.locator("details[open]").count() == 0
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("details[open]").count() == 2
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.get_by_label("Class name").is_visible()


def test_the_page_reads_without_its_script(browser, example):
    with opened(browser, example[2] / "report.html", java_script_enabled=False) as page:
        assert page.locator(f"#classes {ROWS}").count() == 60
        assert not page.get_by_label("Class name").is_visible()
        assert not page.get_by_label("Routing budget").is_visible()


def test_the_comparison_sorts(comparison):
    header(comparison, "second").get_by_role("button").click()
    gains = [float(text.replace("−", "-")) for text in column(comparison, 3)]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0
