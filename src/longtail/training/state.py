"""The state of a training between two of its steps: everything needed to resume it exactly."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.training.ema import WeightAverage
from longtail.utils.errors import InputError


@dataclass
class Position:
    """How far training is: everything that weights, optimiser and settings do not hold.

    Order, augmentation, mixing and dropout follow from the seed, the epoch and the step.
    """

    epoch: int = 1
    """Counted from 1"""

    step: int = 0
    """Steps done in this epoch"""

    seconds: float = 0.0
    """Time spent on them"""

    records: list[dict[str, Any]] = field(default_factory=list)
    """Metrics of the epochs before"""


@dataclass
class TrainingState:
    """Everything that `longtail.training.loop.fit` changes. A checkpoint holds it as tensors and plain values."""

    task: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Any
    """A `torch.amp.GradScaler`"""

    position: Position
    losses: Tensor
    """(steps,), this process's share of the loss of each step of the epoch"""

    correct: Tensor
    """scalar, images of the epoch that this process classified correctly"""

    group: Group = SINGLE_PROCESS
    average: WeightAverage | None = None

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns tensors by name, and JSON values. All processes take part; the first one's result is for all."""
        tensors = {f"{part}.{name}": tensor for part, of in self._modules() for name, tensor in of.state_dict().items()}
        for number, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):  # SGD without momentum keeps a None
                    tensors[f"optimizer.{number}.{name}"] = value
        tensors["losses"] = self.group.sum(self.losses.clone())
        tensors["correct"] = self.group.sum(self.correct.clone())
        return tensors, {"position": vars(self.position), "scaler": self.scaler.state_dict()}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Loads what `capture` returned.

        Raises:
            InputError: it belongs to another training.
        """
        losses = tensors.get("losses")
        if losses is not None and losses.shape != self.losses.shape:
            raise InputError(
                f"an epoch had {losses.numel()} steps and now has {len(self.losses)}: the checkpoint was saved by "
                "another number of processes, which leave out a short last batch at another size; use as many as before"
            )
        try:
            for part, module in self._modules():
                own = {name: value for name, value in tensors.items() if name.startswith(f"{part}.")}
                module.load_state_dict({name.removeprefix(f"{part}."): own[name] for name in own}, strict=True)
            self._restore_optimizer(tensors)
            if values["scaler"]:
                self.scaler.load_state_dict(values["scaler"])
            self.position = Position(**values["position"])
            self.losses.copy_(tensors["losses"])
            self.correct.copy_(tensors["correct"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"the checkpoint is of another training ({' '.join(str(error).split())})") from error
        if not self.group.is_main:  # the first process holds the sums over all processes
            self.losses.zero_()
            self.correct.zero_()

    def _modules(self) -> list[tuple[str, nn.Module]]:
        return [("task", self.task), *([] if self.average is None else [("average", self.average.model)])]

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".", 2)
                parameter = parameters[int(number)]
                if value.shape == parameter.shape:  # in the parameter's memory layout, or steps would be slower
                    value = torch.empty_like(parameter, requires_grad=False).copy_(value)
                state.setdefault(int(number), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})
