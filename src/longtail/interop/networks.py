"""What is exported: networks from pixels to logits. Letters in shapes: B images, C classes, S height and width."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from longtail.data.loaders import Normalise
from longtail.models.heads import classify
from longtail.models.multi_expert import MultiExpert
from longtail.runs.model_file import ModelMetadata
from longtail.utils.choices import Average
from longtail.utils.ensembles import RUNNING_AVERAGES

Add = Callable[[Tensor, Tensor], Tensor]


class PixelsToInputs(nn.Module):
    """Normalises pixels (B, 3, S, S), uint8, as the network expects it."""

    mean: Tensor
    std: Tensor

    def __init__(self, metadata: ModelMetadata):
        super().__init__()
        normalise = Normalise(metadata.mean, metadata.std, torch.device("cpu"))
        self.register_buffer("mean", normalise.mean)
        self.register_buffer("std", normalise.std)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels -> network inputs, float32."""
        return (pixels.float() - self.mean) / self.std


class AllExperts(nn.Module):
    """Pixels (B, 3, S, S), uint8 -> logits (B, C) of the ensemble of all experts."""

    def __init__(self, model: MultiExpert, normalise: PixelsToInputs):
        super().__init__()
        self.normalise, self.model = normalise, model

    def forward(self, *inputs: Tensor) -> Tensor:
        """Pixels -> logits."""
        model, sums = self.model, list[Tensor]()
        shared = model.trunk(self.normalise(*inputs))
        for number in range(model.num_experts):
            sums = _add(sums, model.expert(number, shared)[0], model.average)
        return RUNNING_AVERAGES[model.average].mean(sums[-1], model.num_experts)


class ExpertStage(nn.Module):
    """One expert, and the step of the router after it. The first one includes the trunk.

    Args:
        model: with a router.
        number: of the expert, from 0.
        normalise: for the first one.
    """

    def __init__(self, model: MultiExpert, number: int, normalise: PixelsToInputs):
        super().__init__()
        self.trunk = nn.Sequential(normalise, model.trunk) if number == 0 else None
        self.features = nn.Sequential(model.branches[number], model.neck)
        self.head = model.heads[number]
        self.router = model.router if number < model.num_experts - 1 else None
        self.average: Average = model.average
        self.number = number

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Runs the expert.

        Args:
            inputs: pixels (B, 3, S, S); after the first expert the output of the trunk and the running sums (B, C).

        Returns:
            Logits of the ensemble so far (B, C); but for the last expert also the router's probability (B,) and the
            running sums; for the first one also the output of the trunk.
        """
        first, *before = inputs
        shared = first if self.trunk is None else self.trunk(first)
        logits, features = classify(self.head, self.features(shared))
        sums = _add(before, logits, self.average)
        outputs = RUNNING_AVERAGES[self.average].mean(sums[-1], self.number + 1)
        if self.router is None:
            return (outputs,)
        score = self.router.step(self.number, features, sums[0] / (self.number + 1)).sigmoid()
        return (outputs, score, *sums, *(() if self.trunk is None else (shared,)))


def _add(sums: Sequence[Tensor], logits: Tensor, average: Average) -> list[Tensor]:
    """Adds an expert to running sums: of logits and, for another average, of its terms. Without sums, starts them."""
    # The router uses the mean of logits, whatever the ensemble averages.
    terms = [logits] if average == "logits" else [logits, RUNNING_AVERAGES[average].term(logits)]
    adds: tuple[Add, ...] = (torch.add, _log_add_exp)
    return [add(first, second) for add, first, second in zip(adds, sums, terms, strict=False)] if sums else terms


def _log_add_exp(first: Tensor, second: Tensor) -> Tensor:
    """`torch.logaddexp`. The exporter writes that one as log(exp + exp), which is -inf for small probabilities."""
    return torch.maximum(first, second) + torch.log1p(torch.exp(-(first - second).abs()))
