"""Training steps as CUDA graphs: all kernels of a step are launched at once.

A small network has hundreds of kernels of a few microseconds each, and launching a kernel takes longer than that.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longtail.data.loaders import Batch
from longtail.training.tasks import Step

logger = logging.getLogger(__name__)

EAGER_STEPS = 3
"""Steps of each batch size before the capture: libraries and optimiser allocate what they keep"""


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    inputs: Batch
    """The graph reads these tensors"""

    result: Step
    """The graph writes these tensors"""


class GraphedStep:
    """A training step that captures itself as a CUDA graph, one for each batch size, and replays it from then on.

    It computes what the step computes: no step is repeated or left out for the capture. Steps that cannot be captured
    run as they are.

    Args:
        step: (batch, epoch) to its result, on one GPU. It updates the weights.
        optimizer: that the step uses. Its learning rates become tensors, which the graphs read.
        phase: epoch to anything; between epochs with different phases the step changes and is captured again.
    """

    def __init__(
        self,
        step: Callable[[Batch, int], Step],
        optimizer: torch.optim.Optimizer,
        phase: Callable[[int], Hashable],
    ):
        self._step, self._phase_of = step, phase
        self._phase: Hashable = object()  # equal to no phase
        self._graphs: dict[Hashable, _Captured] = {}
        self._eager_steps: Counter[Hashable] = Counter()
        self._can_capture = True
        for group in optimizer.param_groups:
            device = group["params"][0].device
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
            if "capturable" in group:
                group["capturable"] = True
        # No warning that the first steps are not captured.
        optimizer._warned_capturable_if_run_uncaptured = True  # type: ignore[attr-defined]

    def __call__(self, batch: Batch, epoch: int) -> Step:
        """Trains one step. The result is overwritten by the next one."""
        if (phase := self._phase_of(epoch)) != self._phase:
            self._graphs, self._phase = {}, phase
            self._pool = torch.cuda.graph_pool_handle()
        kind = tuple((part.shape, part.dtype) if isinstance(part, Tensor) else part for part in batch)
        captured = self._graphs.get(kind)
        if captured is None:
            self._eager_steps[kind] += 1
            if not self._can_capture or self._eager_steps[kind] <= EAGER_STEPS:
                return self._step(batch, epoch)
            captured = self._capture(batch, epoch)
            if captured is None:
                return self._step(batch, epoch)
            self._graphs[kind] = captured
        for target, part in zip(captured.inputs, batch, strict=True):
            if isinstance(part, Tensor):
                target.copy_(part)
        captured.graph.replay()
        return captured.result

    def _capture(self, batch: Batch, epoch: int) -> _Captured | None:
        parts: list[Any] = [part.clone() if isinstance(part, Tensor) else part for part in batch]
        inputs = Batch(*parts)
        graph = torch.cuda.CUDAGraph()
        try:
            # Only this thread must not use the GPU otherwise: another one may copy the next images.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                result = self._step(inputs, epoch)
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            logger.warning("A step cannot be captured as a CUDA graph (%s); training continues without, slower", reason)
            self._can_capture = False
            return None
        return _Captured(graph, inputs, result)
