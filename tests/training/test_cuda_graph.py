"""Training with CUDA graphs against training without; and the phases in which a loss does not change."""

import copy

import pytest
import torch
from helpers.loaders import small_split

from longtail.data.loaders import BatchAugmentation, EpochOrder, MemoryLoader, Normalise
from longtail.losses import DistilledLoss, LDAMLoss, RIDELoss, SelfDistilledLoss
from longtail.models.multi_expert import create_model
from longtail.runtime.device import Runtime
from longtail.training.ema import WeightAverage
from longtail.training.loop import LoopOptions, fit
from longtail.training.tasks import Step, TrainExperts, teacher_function

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
COUNTS = [9, 5, 4, 2]
TOLERANCE = 0.03
"""A GPU adds gradients in any order, and training amplifies the differences, also without graphs"""


@pytest.mark.parametrize("reweight_after", [None, 0, 2, 5])
def test_a_loss_changes_with_the_epoch_only_between_phases(reweight_after):
    torch.manual_seed(0)
    views, labels, teacher = torch.randn(2, 6, 3, 4), torch.tensor([0, 0, 1, 2, 3, 1]), torch.randn(6, 4)
    criterion = RIDELoss(COUNTS, max_margin=0.01, reweight_after=reweight_after)
    num_phases = 2 if reweight_after else 1
    for loss, logits, extra, phases in (
        (criterion, views[0], {}, num_phases),
        (DistilledLoss(criterion), views[0], {"teacher_logits": teacher}, num_phases),
        (SelfDistilledLoss(criterion, rampup=4), views.flatten(0, 1), {}, 4 + (reweight_after == 5)),
    ):
        values = {}
        for epoch in range(1, 8):
            values.setdefault(loss.phase(epoch), set()).add(loss(logits, labels, epoch, **extra).item())
        assert all(len(same) == 1 for same in values.values())
        assert len(values) == phases == len(set.union(*values.values()))


def trained(task, graph, *, adamw=False, precision="float32", clip=None, ema=False, epochs=6):
    """Trains on noise; returns the weights and the records."""
    device = torch.device("cuda")
    split = small_split(num=44, size=16)
    loader = MemoryLoader(
        split,
        EpochOrder(len(split), 8, shuffle=True),  # the last batch of an epoch has 4 images
        device=device,
        normalise=Normalise([0.5] * 3, [0.25] * 3, device),
        augmentation=BatchAugmentation(2, True, 5.0),
    )
    if adamw:
        optimizer = torch.optim.AdamW(task.parameters(), 0.1, fused=True)
    else:
        optimizer = torch.optim.SGD(task.parameters(), 0.1, momentum=0.9, nesterov=True, fused=True)
    average = WeightAverage(task.model, 0.9) if ema else None
    options = LoopOptions(
        runtime=Runtime(device, precision),
        clip_gradient=clip,
        average=average,
        graph_phase=task.criterion.phase if graph else None,
    )
    with options.runtime.tf32(False):
        records = list(fit(task, loader, optimizer, lambda epoch: 0.01 / (1 + epoch), epochs, options))
    return (average or task).model.state_dict(), [record["loss"] for record in records]


@needs_gpu
@pytest.mark.parametrize("options", [{}, {"adamw": True, "clip": 1.0}, {"precision": "bf16"}, {"ema": True}], ids=str)
def test_graphs_train_as_single_launches(options):
    torch.manual_seed(0)
    model = create_model("resnet20", 4, num_experts=3).cuda().to(memory_format=torch.channels_last)
    first = TrainExperts(model, RIDELoss(COUNTS, reweight_after=4).cuda())
    second = copy.deepcopy(first)
    weights, losses = trained(first, False, **options)
    graph_weights, graph_losses = trained(second, True, **options)
    assert graph_losses == pytest.approx(losses, rel=TOLERANCE)
    steps = "trunk.bn1.num_batches_tracked"
    assert graph_weights[steps] == weights[steps] == 36


@needs_gpu
def test_a_teacher_is_captured_too():
    torch.manual_seed(0)
    teacher = create_model("resnet20", 4, num_experts=2).cuda()
    results = []
    for graph in (False, True):
        torch.manual_seed(1)
        model = create_model("resnet20", 4, num_experts=2).cuda()
        loss = DistilledLoss(LDAMLoss(COUNTS)).cuda()
        results.append(trained(TrainExperts(model, loss, teach=teacher_function(teacher)), graph)[1])
    assert results[1] == pytest.approx(results[0], rel=TOLERANCE)


@needs_gpu
def test_a_step_that_reads_values_is_not_captured(caplog):
    class Reads(TrainExperts):
        def forward(self, batch, epoch):
            step = super().forward(batch, epoch)
            return Step(step.loss * float(step.loss.detach() > -1), step.correct)

    torch.manual_seed(0)
    task = Reads(create_model("resnet20", 4, num_experts=2).cuda(), LDAMLoss(COUNTS).cuda())
    same = copy.deepcopy(task)
    expected = trained(task, False)[1]
    assert trained(same, True)[1] == pytest.approx(expected, rel=TOLERANCE)
    assert "cannot be captured" in caplog.text
