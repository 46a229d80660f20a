"""Upload to and download from a local server that speaks the Hub's endpoints."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from helpers import hub_server
from helpers.runs import EXPERTS_ONLY, are_equal, digits, environment, weights
from PIL import Image

import longtail
from longtail.cli import main
from longtail.interop.hub import published_files
from longtail.runs.hub import parse_address
from longtail.runs.pulled import open_run
from longtail.runs.run import Run
from longtail.training.initial_weights import load_initial
from longtail.training.teacher import find_teacher
from longtail.utils.errors import InputError

pytestmark = pytest.mark.slow

ADDRESS = "hf://owner/digits"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server, to which the Hub's client is pointed, with an empty cache; the user is owner."""
    constants = huggingface_hub.constants
    with hub_server.serve() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", "token-of-owner")
        monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits before it tries again
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def pushed(hub, digits_run):
    """The server, with a routed run of digits."""
    hub.add(
        "owner/digits",
        published_files(digits_run, "owner/digits") | {"model.safetensors": digits_run.model_path.read_bytes()},
    )
    return hub


def fails(arguments, capsys):
    """Runs a command that fails with one line, and returns the line."""
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    return err


def files_in(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file()]


class TestPush:
    def test_what_is_pushed_comes_back_byte_by_byte(self, hub, digits_run, capsys):
        assert main(["push", str(digits_run.folder), "owner/digits"]) == 0
        assert capsys.readouterr().out == f"{ADDRESS}\n"
        repository = hub.repositories["owner/digits"]
        assert not repository.private
        files = repository.commits[repository.branches["main"]]
        assert files.keys() == {"README.md", "config.json", "config.yaml", "results.json", "model.safetensors"}
        assert files["model.safetensors"] == digits_run.model_path.read_bytes()
        assert len(repository.commits) == 2  # the first, which is empty, and all files together
        model = longtail.load_model(ADDRESS)
        assert are_equal(model.state_dict(), weights(digits_run))

    def test_no_paths_of_this_machine_are_published(self, digits_run_copy):
        config = longtail.load_recipe(
            digits_run_copy.config_path,
            {"data.root": "/home/me/data", "teacher": "/home/me/teacher", "model.pretrained": "/home/me/start"},
        )
        digits_run_copy.write_config(config)
        files = published_files(digits_run_copy, "owner/digits")
        assert b"/home/me" not in b"".join(files.values())
        assert str(digits_run_copy.folder).encode() not in b"".join(files.values())

    def test_private(self, hub, digits_run, capsys):
        assert main(["push", str(digits_run.folder), "owner/mine", "--private"]) == 0
        assert hub.repositories["owner/mine"].private
        assert main(["push", str(digits_run.folder), "owner/mine", "--private"]) == 0  # again: a new commit
        hub.add("owner/public", {})
        assert "public" in fails(["push", digits_run.folder, "owner/public", "--private"], capsys)

    @pytest.mark.parametrize(
        ("token", "words"), [("", "hf auth login"), ("wrong", "hf auth login"), ("token-of-other", "403")]
    )
    def test_without_permission(self, hub, digits_run, token, words, capsys, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", token)
        assert words in fails(["push", digits_run.folder, "owner/digits"], capsys)
        assert hub.repositories == {}

    def test_wrong_names_and_unfinished_runs(self, hub, digits_run_copy, capsys):
        for name in ("digits", "hf://owner/digits", "owner/a/b", "owner/"):
            assert "owner/name" in fails(["push", digits_run_copy.folder, name], capsys)
        digits_run_copy.results_path.unlink()
        assert "not finished" in fails(["push", digits_run_copy.folder, "owner/digits"], capsys)
        assert hub.requests == []


class TestPull:
    def test_predict(self, pushed, digits_run, tmp_path, capsys):
        Image.new("RGB", (8, 8), (200, 90, 10)).save(tmp_path / "image.png")
        outputs = []
        for model in (digits_run.folder, ADDRESS, f"{ADDRESS}@main"):
            assert main(["predict", str(model), "image.png"]) == 0
            outputs.append(capsys.readouterr().out)
        assert outputs[0] == outputs[1] == outputs[2]
        assert "probability" in outputs[0]

    @pytest.mark.usefixtures("no_plots")
    def test_evaluate_makes_a_run_once(self, pushed, digits_run, capsys):
        assert main(["evaluate", ADDRESS, "--device", "cpu"]) == 0
        run = longtail.Run("runs/digits")
        for name in ("balanced", "few", "ece", "temperature"):
            assert run.results()["test"][name] == digits_run.results()["test"][name]
        assert run.environment()["pulled_from"].startswith(f"{ADDRESS}@")
        longtail.evaluate(ADDRESS, "val")
        assert [path.name for path in Path("runs").iterdir()] == ["digits"]
        assert "downloaded" in fails(["train", "--resume", "runs/digits"], capsys)

    @pytest.mark.slow
    @pytest.mark.usefixtures("no_plots")
    def test_it_teaches_and_is_a_start(self, pushed, digits_run, tmp_path, caplog):
        caplog.set_level("INFO", "longtail")
        initial = load_initial(ADDRESS)
        assert are_equal(initial.model.state_dict(), weights(digits_run))
        teacher = find_teacher(digits({"teacher": ADDRESS}))
        assert teacher.read_bytes() == digits_run.model_path.read_bytes()
        settings = EXPERTS_ONLY | {"teacher": ADDRESS, "model.pretrained": ADDRESS, "training.epochs": 1}
        longtail.train(digits(settings), tmp_path / "student")
        assert any(ADDRESS in record.getMessage() for record in caplog.records)

    def test_an_earlier_revision(self, hub, digits_run, experts_run):
        repository = hub.add("owner/digits", {"model.safetensors": experts_run.model_path.read_bytes()})
        first = repository.branches["main"]
        repository.branches["v1"] = first
        hub.add("owner/digits", {"model.safetensors": digits_run.model_path.read_bytes()})
        for revision in ("v1", first):
            assert are_equal(longtail.load_model(f"{ADDRESS}@{revision}").state_dict(), weights(experts_run))
        assert are_equal(longtail.load_model(ADDRESS).state_dict(), weights(digits_run))

    @pytest.mark.parametrize(
        "address", ["hf://owner", "hf:/owner/digits", "hf://owner/digits/model", "hf://owner/d@", "hf://../x"]
    )
    def test_a_wrong_address_says_the_form(self, hub, address, capsys):
        assert "hf://owner/name" in fails(["predict", address, "image.png"], capsys)
        assert "hf://owner/name" in fails(["evaluate", address], capsys)
        assert hub.requests == []

    @pytest.mark.parametrize(
        ("address", "token", "words"),
        [
            ("hf://owner/missing", "token-of-other", "does not exist, or is private"),
            ("hf://owner/secret", "token-of-other", "does not exist, or is private"),
            ("hf://owner/secret", "", "hf auth login"),
            ("hf://owner/digits@v9", "", "no such revision"),
            ("hf://owner/other", "", "not a model of longtail"),
        ],
    )
    def test_what_is_not_there(self, pushed, address, token, words, capsys, monkeypatch):
        pushed.add("owner/secret", {"model.safetensors": b"x"}, private=True)
        pushed.add("owner/other", {"pytorch_model.bin": b"x"})
        monkeypatch.setenv("HF_TOKEN", token)
        for command in (["predict", address, "image.png"], ["evaluate", address]):
            line = fails(command, capsys)
            assert words in line
            assert address.partition("@")[0] in line
        assert not Path("runs").exists()

    def test_private_models_of_the_user(self, hub, digits_run):
        hub.add("owner/mine", {"model.safetensors": digits_run.model_path.read_bytes()}, private=True)
        assert are_equal(longtail.load_model("hf://owner/mine").state_dict(), weights(digits_run))

    def test_a_server_that_refuses(self, pushed, capsys):
        pushed.status = 403
        assert "403" in fails(["predict", ADDRESS, "image.png"], capsys)
        pushed.status = 500
        assert "500" in fails(["predict", ADDRESS, "image.png"], capsys)

    def test_without_a_network_the_cache_is_used(self, pushed, digits_run, capsys, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
        with monkeypatch.context() as offline:
            offline.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            assert "cannot be reached" in fails(["predict", ADDRESS, "image.png"], capsys)
            assert "connection to the Hub failed" in fails(["push", digits_run.folder, "owner/digits"], capsys)
        longtail.load_model(ADDRESS)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        assert are_equal(longtail.load_model(ADDRESS).state_dict(), weights(digits_run))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        assert are_equal(longtail.load_model(ADDRESS).state_dict(), weights(digits_run))
        assert "cannot be reached" in fails(["predict", "hf://owner/never", "image.png"], capsys)

    @pytest.mark.slow
    def test_an_interrupted_download(self, pushed, digits_run, capsys, monkeypatch, tmp_path):
        pushed.cut = 1000
        assert "the same command tries again" in fails(["evaluate", ADDRESS], capsys)
        assert not Path("runs").exists()
        complete = [path for path in files_in(tmp_path / "cache") if "snapshots" in path.parts]
        assert complete == []
        pushed.cut = None
        assert are_equal(longtail.load_model(ADDRESS).state_dict(), weights(digits_run))

    @pytest.mark.parametrize("error", [KeyboardInterrupt, InputError])
    def test_an_interrupt_while_the_run_is_written(self, pushed, error, monkeypatch):
        def fail(*arguments):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Run, "write_config", fail)
            with pytest.raises(error):
                open_run(ADDRESS)
        assert files_in("runs") == []
        assert open_run(ADDRESS).folder == Path("runs/digits")

    def test_damaged_and_foreign_files_are_refused(self, hub, digits_run, capsys):
        model = digits_run.model_path.read_bytes()
        damaged = model[:-4] + b"\x01\x02\x03\x04"
        settings = published_files(digits_run, "owner/digits")
        for content in (damaged, model[:5000], b"", b"import os; os.abort()"):
            hub.add("owner/digits", settings | {"model.safetensors": content})
            assert "model.safetensors" in fails(["evaluate", ADDRESS], capsys)
        hub.add("owner/digits", settings | {"model.safetensors": model, "config.yaml": b"!!python/object:os.abort"})
        assert "config.yaml" in fails(["evaluate", ADDRESS], capsys)
        assert not Path("runs").exists()


class TestCard:
    def test_numbers_are_those_of_the_results(self, digits_run):
        results = digits_run.results()
        card = huggingface_hub.ModelCard(published_files(digits_run, "owner/digits")["README.md"].decode())
        test, routing = results["test"], results["test"]["routing"]
        by_name = {result.metric_name: result.metric_value for result in card.data.eval_results}
        assert by_name["Accuracy"] == round(test["accuracy"], 4)
        assert by_name["Accuracy of few-shot classes"] == round(test["few"], 4)
        assert card.data.library_name == "longtail"
        assert card.data.pipeline_tag == "image-classification"
        assert "long-tailed-recognition" in card.data.tags
        assert card.data.model_name == "digits"

        def percent(value):
            return f"{100 * value:.1f}"

        names = ("accuracy", "balanced", "many", "medium", "few")
        row = " | ".join(["test", "600", *(percent(test[name]) for name in (*names, "top5", "ece"))])
        assert f"| {row} | {test['nll']:.3f} |" in card.text
        assert f"| few | under 20 | {test['shots'].count('few')} |" in card.text
        for number, expert in enumerate(test["experts"], start=1):
            row = " | ".join([f"expert {number}", *(percent(expert[name]) for name in names)])
            assert f"| {row} |" in card.text
        assert f"| routed: {routing['mean_experts']:.2f} | {percent(routing['accuracy'])} |" in card.text
        assert f"temperature {test['temperature']:.4g}" in card.text
        counts = results["class_counts"]
        for fact in (
            f"{sum(counts)} training images",
            f"has {max(counts)} images",
            "seed 0",
            "2 epochs",
            "`ride` loss",
        ):
            assert fact in card.text
        assert "arXiv:2010.01809" in card.text
        assert "no licence" in card.text

    def test_it_describes_the_last_evaluation(self, digits_run_copy):
        """Its views and limits can differ from those of the settings."""
        results = digits_run_copy.results()
        results["views"], results["test"]["thresholds"]["few_below"] = "flip", 60
        digits_run_copy.write_json("results.json", results)
        text = published_files(digits_run_copy, "owner/digits")["README.md"].decode()
        assert "averaged over 2 views" in text
        assert "| few | under 60 |" in text

    def test_results_of_an_earlier_version(self, digits_run_copy, capsys):
        results = digits_run_copy.results()
        del results["test"]["thresholds"]
        digits_run_copy.write_json("results.json", results)
        folder = str(digits_run_copy.folder)
        assert f"longtail evaluate {folder} writes them again" in fails(["push", folder, "owner/digits"], capsys)

    def test_the_example_runs(self, pushed, digits_run, tmp_path, capsys):
        (tmp_path / "photos").mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / "photos/image.png")
        text = published_files(digits_run, "owner/digits")["README.md"].decode()
        exec(text.partition("```python\n")[2].partition("```")[0], {})
        assert "image.png" in capsys.readouterr().out

    def test_one_expert_without_a_router_and_with_a_licence(self, single_expert_run):
        text = published_files(single_expert_run, "owner/one", "mit")["README.md"].decode()
        assert "## Routing" not in text
        assert "one expert" in text
        assert "Weights: mit." in text
        assert yaml.safe_load(text.split("---\n")[1])["license"] == "mit"

    def test_the_configuration_rebuilds_the_model(self, digits_run):
        about = json.loads(published_files(digits_run, "owner/digits")["config.json"])
        model = longtail.create_model(**about["architecture"])
        model.load_state_dict(weights(digits_run))
        images = torch.rand(4, 3, about["image_size"], about["image_size"])
        original = longtail.load_model(digits_run.folder)
        assert torch.equal(model.eval().route(images).logits, original.route(images).logits)
        assert len(about["class_names"]) == len(about["class_counts"]) == 10


@pytest.mark.slow
def test_the_variables_of_the_client_are_used(hub, digits_run, tmp_path):
    """In processes of their own, as a user would."""
    variables = environment() | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_TOKEN": "token-of-owner",
    }
    variables["HF_HUB_DISABLE_XET"] = "1"
    shutil.copytree(digits_run.folder, tmp_path / "run")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    for command in (["push", "run", "owner/digits"], ["predict", ADDRESS, "image.png"]):
        done = subprocess.run([sys.executable, "-m", "longtail", *command], env=variables, cwd=tmp_path, timeout=300)
        assert done.returncode == 0
    variables |= {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", "longtail", *command], env=variables, cwd=tmp_path, timeout=300)
    assert done.returncode == 0


def test_addresses():
    assert parse_address("hf://a/b@refs/pr/1") == ("a/b", "refs/pr/1")
    assert str(parse_address("hf://a/b@v1.0")) == "hf://a/b@v1.0"
