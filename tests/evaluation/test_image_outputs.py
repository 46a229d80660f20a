"""What a run keeps about each test image, compared with loops over images."""

from typing import get_args

import pytest
import torch
from helpers.reports import COUNTS, outputs_with_router

from longtail.evaluation.image_outputs import image_outputs, load_image_outputs, save_image_outputs
from longtail.evaluation.label_errors import label_doubts
from longtail.utils.choices import Average
from longtail.utils.errors import InputError
from longtail.utils.files import write_tensors

PRIOR = torch.tensor(COUNTS).float().log()[None]


@pytest.mark.parametrize("average", get_args(Average))
def test_predictions_and_probabilities(average):
    outputs = outputs_with_router(COUNTS)._replace(average=average, temperature=1.7)
    kept = image_outputs(outputs, "a fingerprint", PRIOR)
    for n in range(0, 200, 17):
        experts = outputs.logits[n].double()
        assert kept.experts[n].tolist() == experts.argmax(dim=1).tolist()
        assert kept.expert_probabilities[n].tolist() == pytest.approx((experts / 1.7).softmax(1).max(1).values.tolist())
        for used in (1, 2, 3):
            first = experts[:used]
            mean = first.mean(dim=0) if average == "logits" else first.softmax(dim=1).mean(dim=0).log()
            assert int(kept.prefixes[n, used - 1]) == int(mean.argmax())
        assert float(kept.probabilities[n]) == pytest.approx(float((mean / 1.7).softmax(0).max()))
        assert float(kept.uncalibrated[n]) == pytest.approx(float(mean.softmax(0).max()))
    assert torch.equal(kept.predictions, kept.prefixes[:, 2])
    assert torch.equal(kept.router_logits, outputs.router_logits)


def test_labels_are_judged_as_by_longtail_check():
    outputs = outputs_with_router(COUNTS)
    kept = image_outputs(outputs, "", PRIOR)
    expected = label_doubts((outputs.logits - PRIOR).mean(dim=1), outputs.labels)
    assert torch.allclose(kept.log_odds, expected.log_odds, atol=1e-4)
    assert torch.equal(kept.suggested, expected.suggested)
    assert image_outputs(outputs, "").log_odds is None


def test_too_many_logits_to_judge_labels(monkeypatch):
    monkeypatch.setattr("longtail.evaluation.image_outputs.MAX_DOUBT_NUMBERS", 1999)
    assert image_outputs(outputs_with_router(COUNTS), "", PRIOR).log_odds is None


@pytest.mark.parametrize("has_router", [True, False])
def test_outputs_are_read_as_they_were_written(tmp_path, has_router):
    outputs = outputs_with_router(COUNTS)
    if not has_router:
        outputs = outputs._replace(router_logits=None)
    kept = image_outputs(outputs, "a fingerprint", PRIOR if has_router else None)
    save_image_outputs(tmp_path / "outputs.safetensors", kept)
    read = load_image_outputs(tmp_path / "outputs.safetensors")
    for name, value in kept._asdict().items():
        other = getattr(read, name)
        assert torch.equal(value, other) if torch.is_tensor(value) else value == other, name
    assert (tmp_path / "outputs.safetensors").stat().st_size < 200 * 60 + 3000


def test_more_classes_than_small_integers_hold(tmp_path):
    kept = image_outputs(outputs_with_router([1] * 40_000, num_images=3, tested=[0, 39_999, 5]), "")
    save_image_outputs(tmp_path / "outputs.safetensors", kept)
    assert load_image_outputs(tmp_path / "outputs.safetensors").labels.tolist() == [0, 39_999, 5]


def test_other_files_are_refused(tmp_path):
    write_tensors(tmp_path / "model.safetensors", {"weight": torch.ones(2)}, {"test_images": ""})
    with pytest.raises(InputError, match=r"model\.safetensors: holds no outputs of an evaluation"):
        load_image_outputs(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="missing"):
        load_image_outputs(tmp_path / "missing.safetensors")
