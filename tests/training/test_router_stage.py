"""The router's stage: what changes in a run, and the choice of the threshold."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.runs import EXPERTS_ONLY, are_equal, digits, weights

import longtail
from longtail import api
from longtail.config.recipes import load_recipe
from longtail.data import build as data_build
from longtail.evaluation.evaluator import evaluate_splits
from longtail.evaluation.flops import cost
from longtail.evaluation.outputs import collect_outputs
from longtail.runs.context import RunContext
from longtail.runs.run import Run
from longtail.runtime.device import Runtime
from longtail.utils.errors import InputError

pytestmark = pytest.mark.usefixtures("no_plots")


def router_config(run, **changes):
    return replace(run.config, router=replace(run.config.router, **changes))


def results_of(run: Run, split: str) -> dict:
    return json.loads((run.folder / "results.json").read_text())[split]


def test_only_the_router_changes(experts_run, experts_run_copy):
    """Weights and running statistics stay bit for bit; the results of the experts stay too."""
    run, before = experts_run_copy, weights(experts_run)
    api.add_router(run, config=router_config(run, epochs=2))
    after, (model, metadata) = weights(run), run.load_model()
    assert all(torch.equal(value, after.pop(name)) for name, value in before.items())
    assert after
    assert all(name.startswith("router.") for name in after)
    assert model.router.threshold == 0.5
    assert metadata == experts_run.load_model()[1]
    assert run.config.router.train
    assert run.progress().is_routed
    for name in ("accuracy", "balanced", "per_class", "experts"):
        assert results_of(run, "test")[name] == results_of(experts_run, "test")[name]
    assert len(json.loads((run.folder / "router.json").read_text())["epochs"]) == 2


def test_a_new_router_replaces_the_earlier_one(digits_run, digits_run_copy):
    run = digits_run_copy
    api.add_router(run, config=router_config(run, hidden=8, shared=False, max_accuracy_drop=None))
    earlier, later = weights(digits_run), weights(run)
    assert later["router.hidden.0.weight"].shape[0] == 8
    assert "router.output.1.weight" in later
    assert "router.output.1.weight" not in earlier
    assert run.load_model()[1].threshold_for == ""
    longtail.load_model(run.folder).route(torch.zeros(2, 3, 8, 8))


def test_speed_is_measured_with_and_without_a_router(experts_run, digits_run):
    without, with_router = (json.loads(run.results_path.read_text()) for run in (experts_run, digits_run))
    speed = without["images_per_second"]
    assert (len(speed["prefixes"]), speed["routed"]) == (3, None)
    assert min(speed["prefixes"]) > 0
    assert "images_per_second" not in with_router  # it is in the report of the routing
    assert with_router["test"]["routing"]["images_per_second"]["routed"] > 0


def test_a_router_leaves_the_settings_of_the_experts(experts_run_copy):
    run, before = experts_run_copy, experts_run_copy.config
    changed = replace(before, seed=5, training=replace(before.training, epochs=9))
    api.add_router(run, config=replace(changed, router=replace(changed.router, epochs=1)))
    assert replace(run.config, router=before.router) == before
    assert run.config.router.epochs == 1


@pytest.mark.slow
def test_stages_one_by_one_equal_all_stages_at_once(experts_run_copy, tmp_path):
    config = digits(EXPERTS_ONLY | {"router.train": True})
    at_once = longtail.train(config, tmp_path / "at once")
    api.add_router(experts_run_copy, config=replace(experts_run_copy.config, router=config.router))
    assert are_equal(weights(at_once), weights(experts_run_copy))
    assert at_once.is_finished


def test_a_single_expert_gets_no_router(single_expert_run):
    with pytest.raises(InputError, match="one expert"):
        api.add_router(single_expert_run)
    with pytest.raises(InputError, match=r"router\.train"):
        load_recipe("digits-lt-ce", {"router.train": True})


# ---- the choice of the threshold ----


def test_the_threshold_is_chosen_on_validation_images(digits_run):
    """The cheapest of all thresholds that loses at most 0.2 points there, found by brute force."""
    routing, threshold = results_of(digits_run, "val")["routing"], digits_run.load_model()[0].router.threshold
    assert routing["threshold"] == threshold
    assert routing["chosen_on"] == "val"
    assert results_of(digits_run, "test")["routing"]["threshold"] == threshold
    lowest = max(routing["curve"], key=lambda point: point["cost"])["balanced"] - 0.002
    cheapest = min(point["cost"] for point in routing["curve"] if point["balanced"] >= lowest - 1e-12)
    assert routing["cost"] == pytest.approx(cheapest)
    assert routing["balanced"] >= lowest - 1e-12


def test_results_of_routing_are_those_of_the_model(digits_run):
    config = digits_run.config
    context = RunContext(digits_run, config, data_build.load_data(config.data), Runtime())
    model, metadata = digits_run.load_model()
    outputs = collect_outputs(model, context.eval_loaders()["test"])
    model.router.threshold = outputs.router_logits.sigmoid().median().item()  # so that images use 1, 2 and 3 experts
    loaders = context.eval_loaders()
    results = evaluate_splits(context, model, metadata, loaders, {"test": outputs})
    with torch.inference_mode():
        routed = [(model.route(batch.inputs), batch.labels) for batch in context.eval_loaders()["test"].epoch(0)]
    used = torch.cat([output.experts_used for output, _ in routed])
    correct = torch.cat([output.logits.argmax(dim=1) == labels for output, labels in routed])
    assert used.unique().tolist() == [1, 2, 3]
    report = results.routings["test"].as_dict()
    assert report["accuracy"] == pytest.approx(correct.double().mean().item())
    assert report["shares"] == pytest.approx((torch.bincount(used - 1, minlength=3) / len(used)).tolist())
    assert report["mean_experts"] == pytest.approx(used.double().mean().item())
    assert report["cost"] == pytest.approx(cost(model, metadata.image_size).expected(report["shares"]))


@pytest.mark.parametrize(
    "goal",
    [
        {"compute_budget": "1.3"},
        pytest.param({"compute_budget": "1.9M"}, marks=pytest.mark.slow),
        pytest.param({"max_accuracy_drop": 50.0}, marks=pytest.mark.slow),
    ],
)
def test_another_threshold_can_be_chosen_after_training(digits_run, digits_run_copy, goal):
    """It is kept with the model, and nothing else changes."""
    run = digits_run_copy
    api.evaluate(run, **goal)
    routing, (model, metadata) = results_of(run, "val")["routing"], run.load_model()
    assert model.router.threshold == routing["threshold"]
    if limit := goal.get("compute_budget"):
        assert routing["cost"] <= (1.3 * routing["curve"][0]["cost"] if limit == "1.3" else 1.9e6)
    else:
        assert routing["relative_cost"] == pytest.approx(1)
    assert are_equal(weights(run), weights(digits_run))
    ((name, value),) = goal.items()
    assert metadata.threshold_for == f"{name} {value if isinstance(value, str) else f'{value:g}'}"
    assert replace(metadata, threshold_for="") == replace(digits_run.load_model()[1], threshold_for="")


def test_a_budget_below_the_cost_of_one_expert(digits_run, tmp_path):
    with pytest.raises(InputError, match=r"920 k MACs .*1\.84 M"):
        api.evaluate(digits_run, compute_budget="0.5")
    for budget in (0.5, "1M"):
        config = digits({"router.max_accuracy_drop": None, "router.compute_budget": budget})
        with pytest.raises(InputError, match=rf"compute_budget.* {budget}"):
            longtail.train(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_threshold_needs_validation_images_and_a_router(digits_run, single_expert_run):
    without_val = replace(digits_run.config, data=replace(digits_run.config.data, val_spare=0))
    with pytest.raises(InputError, match="validation images"):
        api.evaluate(digits_run, config=without_val, compute_budget="1.2")
    with pytest.raises(InputError, match="no router"):
        api.evaluate(single_expert_run, compute_budget="1.2")


def test_spare_images_are_those_that_the_long_tail_leaves_out():
    settings = load_recipe("digits-lt-ride").data
    with_val, without_val = data_build.load_data(settings), data_build.load_data(replace(settings, val_spare=0))
    assert without_val.val is None
    assert np.array_equal(with_val.train.pixels, without_val.train.pixels)
    left_out = 114 - np.array(with_val.class_counts)
    assert np.bincount(with_val.val.labels, minlength=10).tolist() == np.minimum(left_out, 20).tolist()
    images = {image.tobytes() for image in (*with_val.train.pixels, *with_val.test.pixels)}
    assert sum(image.tobytes() in images for image in with_val.val.pixels) == 0
