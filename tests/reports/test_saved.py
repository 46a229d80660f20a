"""The report page from the files of a run, and the comparison of runs: in Python and on the command line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.html_pages import Page
from PIL import Image

import longtail
from longtail.cli import main
from longtail.data.build import load_data
from longtail.evaluation.image_outputs import load_image_outputs
from longtail.reports.saved import load_report
from longtail.utils.errors import InputError


def no_evaluation(*arguments, **options):
    raise AssertionError("the run was evaluated")


@pytest.fixture
def without_network(monkeypatch):
    monkeypatch.setattr("longtail.api.evaluate", no_evaluation)


def pages_without_commands(path):
    return path.read_text().partition('id="settings"')[0]


def test_the_saved_outputs_are_those_of_the_model(digits_run):
    outputs, config = load_image_outputs(digits_run.folder / "outputs.safetensors"), digits_run.config
    test = load_data(config.data).test
    model = longtail.load_model(digits_run.folder)
    images = (torch.tensor(test.pixels / 255, dtype=torch.float32) - torch.tensor(config.data.mean)) / torch.tensor(
        config.data.std
    )
    with torch.inference_mode():
        logits = model(images.permute(0, 3, 1, 2)).logits
    assert outputs.labels.tolist() == test.labels.tolist()
    assert torch.equal(outputs.experts, logits.argmax(dim=2))
    assert torch.equal(outputs.predictions, logits.mean(dim=1).argmax(dim=1))
    expected = (logits.mean(dim=1) / model.temperature).softmax(dim=1).max(dim=1).values
    assert torch.allclose(outputs.probabilities, expected, atol=1e-5)
    assert outputs.test_images == test.fingerprint(Path(config.data.root))


@pytest.mark.usefixtures("without_network")
def test_the_page_is_made_again_without_the_network(digits_run_copy):
    page = digits_run_copy.folder / "report.html"
    before = pages_without_commands(page)
    assert len(Page(page.read_text()).attributes("img")) > 50
    page.unlink()
    assert longtail.report(digits_run_copy) == page
    assert pages_without_commands(page) == before
    assert page.stat().st_size < 400_000
    assert {path.name for path in digits_run_copy.folder.glob(".*")} == {".lock"}


@pytest.mark.usefixtures("without_network")
def test_data_that_changed_give_no_pictures(digits_run_copy, monkeypatch, caplog):
    load = load_data

    def other_images(*arguments):
        dataset = load(*arguments)
        dataset.test.pixels[0] ^= 1
        return dataset

    monkeypatch.setattr("longtail.reports.saved.load_data", other_images)
    page = Page(longtail.report(digits_run_copy.folder).read_text())
    assert not page.attributes("img")
    assert "the test images have changed" in caplog.text

    def missing(*arguments):
        raise InputError("data.root: no such folder")

    monkeypatch.setattr("longtail.reports.saved.load_data", missing)
    assert not Page(longtail.report(digits_run_copy.folder).read_text()).attributes("img")
    assert "data.root: no such folder" in caplog.text


@pytest.mark.parametrize("change", ["no outputs", "no results", "other outputs", "earlier version"])
def test_what_is_missing_is_evaluated(digits_run_copy, monkeypatch, change):
    folder, calls = digits_run_copy.folder, []
    results = digits_run_copy.results()
    if change == "no outputs":
        (folder / "outputs.safetensors").unlink()
    elif change == "no results":
        (folder / "results.json").unlink()
    elif change == "other outputs":  # the last evaluation was stopped
        results["test"]["accuracy"] += 0.01
        (folder / "results.json").write_text(json.dumps(results))
    else:
        results.pop("cost")
        (folder / "results.json").write_text(json.dumps(results))
    assert load_report(digits_run_copy) is None
    monkeypatch.setattr("longtail.api.evaluate", lambda run, config: calls.append(run.folder))
    longtail.report(folder)
    assert calls == [folder]


def test_an_evaluation_with_other_limits_is_remembered(digits_run_copy, monkeypatch):
    monkeypatch.setattr("longtail.evaluation.evaluator.SPEED_SECONDS", 0.01)
    monkeypatch.setattr("longtail.reports.results.write_report", lambda *arguments: None)
    assert main(["evaluate", str(digits_run_copy.folder), "--evaluation.few_below", "60"]) == 0
    text = pages_without_commands(longtail.report(digits_run_copy))
    assert "under 60" in text
    assert load_report(digits_run_copy)[0].config.evaluation.few_below == 60


@pytest.mark.usefixtures("no_plots")
def test_a_folder_of_images(tmp_path, monkeypatch):
    from helpers.runs import digits

    for k in range(3):
        for number in range(8):
            path = tmp_path / "photos" / f"<b>{k}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (12, 8), (80 * k, 9 * number, 0)).save(path)
    changes = {"data.name": "folder", "data.root": str(tmp_path / "photos"), "data.imbalance": "none"}
    changes |= {"data.image_size": 8, "training.epochs": 1, "router.train": False, "model.num_experts": 2}
    changes |= {"data.val_spare": 0, "router.max_accuracy_drop": None, "model.backbone": "resnet20"}
    run = longtail.train(digits(changes), tmp_path / "run")
    monkeypatch.setattr("longtail.api.evaluate", no_evaluation)
    text = longtail.report(run).read_text()
    page = Page(text)
    assert page.attributes("img")
    assert "<b>0" in page.text
    assert "&lt;b&gt;" in text
    assert "predictions.csv" in text
    # After the images moved, --data.root finds them.
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert not Page(longtail.report(run).read_text()).attributes("img")
    assert main(["report", str(run.folder), "--data.root", str(tmp_path / "moved")]) == 0
    assert Page((run.folder / "report.html").read_text()).attributes("img")


@pytest.mark.usefixtures("without_network")
def test_the_commands(digits_run, digits_run_copy, tmp_path, monkeypatch, capsys):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(digits_run_copy.folder), "--open"]) == 0
    assert opened == [(digits_run_copy.folder / "report.html").as_uri()]
    assert main(["compare", str(digits_run_copy.folder), str(digits_run.folder), "--output", "both.html"]) == 0
    assert "both.html" in capsys.readouterr().out
    page = Page((tmp_path / "both.html").read_text())
    pair = page.tables["McNemar's exact test for each pair of runs, with all experts"][1]
    assert pair[2:5] == ["0", "0", "0.0"]
    assert main(["compare", str(digits_run_copy.folder), str(digits_run.folder), "--open"]) == 0
    assert opened[1:] == [(tmp_path / "compare.html").as_uri()]


@pytest.mark.usefixtures("without_network")
def test_wrong_input_is_one_line(digits_run, digits_run_copy, tmp_path, capsys):
    def message(*arguments):
        assert main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    run, other = digits_run.folder, digits_run_copy.folder
    assert "two or more runs, and got 1" in message("compare", run)
    assert "it must be a file" in message("compare", run, other, "--output", tmp_path)
    assert "it must be a file" in message("compare", run, other, "--output", tmp_path / "missing" / "x.html")
    assert "is not a run folder" in message("compare", run, tmp_path)
    assert "is not a run folder" in message("report", tmp_path / "missing")
    assert "cannot change here" in message("report", run, "--training.epochs", "3")
    outputs = other / "outputs.safetensors"
    content = outputs.read_bytes()
    outputs.write_bytes(content.replace(load_image_outputs(outputs).test_images.encode(), b"0" * 64))
    assert "does not match its checksum" in message("compare", run, other)
    results = other / "results.json"
    outputs.write_bytes(content)
    results.write_text(results.read_text().replace('"thresholds": {', '"thresholds": {"x": 1,'))
    assert "results.json: damaged" in message("report", other)
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.usefixtures("without_network")
def test_runs_with_other_test_images_are_refused(digits_run, tmp_path):
    from longtail.evaluation.image_outputs import save_image_outputs

    copy = shutil.copytree(digits_run.folder, tmp_path / "other")
    path = copy / "outputs.safetensors"
    save_image_outputs(path, load_image_outputs(path)._replace(test_images="others"))
    with pytest.raises(InputError, match="different test images"):
        longtail.compare([digits_run, copy], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()
