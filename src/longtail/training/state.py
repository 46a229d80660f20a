"""The state of a training between two of its steps: everything needed to resume it exactly."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from longtail.runtime.distributed import SINGLE_PROCESS, Group
from longtail.training.ema import WeightAverage
from longtail.utils.errors import InputError

FORMAT = 2
"""Of `TrainingState.capture`. Format 1, of earlier versions, has neither this number nor the number of tensors"""


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

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "Position":
        """Reads what a checkpoint holds.

        Raises:
            InputError: it is of another version, or not the position of a training.
        """
        written = values.get("format", 1)
        if written not in (1, FORMAT):
            raise InputError(
                f"was saved by another version of longtail (format {written}; this one reads up to {FORMAT}); resume "
                "with that version"
            )
        content = values.get("position")
        if not isinstance(content, dict) or content.keys() != {field.name for field in fields(cls)}:
            raise InputError("holds no position of a training; restore the file")
        position = cls(**content)
        numbers, records = (position.epoch, position.step), position.records
        is_valid = (
            all(type(number) is int and number >= minimum for number, minimum in zip(numbers, (1, 0), strict=True))
            and type(position.seconds) in (int, float)
            and isinstance(records, list)
            and all(isinstance(record, dict) for record in records)
            and [record.get("epoch") for record in records] == list(range(1, position.epoch))
        )
        if not is_valid:
            raise InputError(
                f"epoch {position.epoch}, step {position.step} and their records do not fit together; restore the file"
            )
        return position


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
        values = {"format": FORMAT, "num_tensors": len(tensors), "position": vars(self.position)}
        return tensors, values | {"scaler": self.scaler.state_dict()}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any], position: Position) -> None:
        """Loads what `capture` returned, whose position is parsed.

        Raises:
            InputError: it belongs to another training.
        """
        losses = tensors.get("losses")
        if losses is not None and losses.shape != self.losses.shape:
            raise InputError(
                f"an epoch had {losses.numel()} steps and now has {len(self.losses)}: the checkpoint was saved by "
                "another number of processes, which leave out a short last batch at another size; use as many as before"
            )
        if position.step > len(self.losses):
            raise InputError(f"is at step {position.step} of an epoch of {len(self.losses)} steps; restore the file")
        try:
            if len(tensors) != values.get("num_tensors", len(tensors)):
                raise ValueError(f"{len(tensors)} tensors instead of {values['num_tensors']}")
            for part, module in self._modules():
                prefix = f"{part}."
                state = {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}
                module.load_state_dict(state, strict=True)
            self._restore_optimizer(tensors)
            if bool(values["scaler"]) != self.scaler.is_enabled():
                raise ValueError("the state of the gradient scaler does not fit the precision")
            if values["scaler"]:
                self.scaler.load_state_dict(values["scaler"])
            self.position = position
            self.losses.copy_(tensors["losses"])
            self.correct.copy_(tensors["correct"])
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the checkpoint is of another training ({' '.join(str(error).split())}); resume with the version "
                "and the settings that saved it"
            ) from error
        if not self.group.is_main:  # the first process holds the sums over all processes
            self.losses.zero_()
            self.correct.zero_()

    def _modules(self) -> list[tuple[str, nn.Module]]:
        return [("task", self.task), *([] if self.average is None else [("average", self.average.model)])]

    def _restore_optimizer(self, tensors: dict[str, Tensor]) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        names, before = _kept_tensors(self.optimizer), self.optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, number, name = key.split(".", 2)
                parameter = parameters[int(number)]
                if name not in names or value.shape not in (parameter.shape, ()):
                    raise ValueError(f"the optimizer has no tensor {name} of shape {tuple(value.shape)}")
                if value.shape == parameter.shape:  # in the parameter's memory layout, or steps would be slower
                    value = torch.empty_like(parameter, requires_grad=False).copy_(value)
                state.setdefault(int(number), {})[name] = value
        if missing := [number for number in before["state"] if number not in state]:
            raise ValueError(f"the optimizer's tensors of {len(missing)} parameters are missing")
        self.optimizer.load_state_dict({**before, "state": state})


def _kept_tensors(optimizer: torch.optim.Optimizer) -> set[str]:
    """The names of the tensors that an optimizer keeps for each parameter, from a step of its own kind."""
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = torch.zeros(1)
    accepted = inspect.signature(type(optimizer)).parameters  # AdamW keeps a default that it does not take
    trial = type(optimizer)([parameter], **{key: value for key, value in optimizer.defaults.items() if key in accepted})
    trial.step()
    return {name for name, value in trial.state[parameter].items() if isinstance(value, Tensor)}
