"""Independent parts of a network at the same time."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def run_each(functions: Sequence[Callable[[Tensor], tuple[Tensor, ...]]], shared: Tensor) -> list[tuple[Tensor, ...]]:
    """Returns the result of each function for one input.

    While a CUDA graph is captured, each function gets a stream of its own. The GPU then computes them, and their
    gradients, at the same time: the kernels of a small network use a fraction of it. Outside of a graph, launching the
    kernels takes longer than computing them, and streams gain nothing.
    """
    if not (shared.is_cuda and torch.cuda.is_current_stream_capturing()):
        return [function(shared) for function in functions]
    main = torch.cuda.current_stream()
    start = main.record_event()
    results = []
    for function in functions:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_event(start)
        with torch.cuda.stream(stream):
            results.append(function(shared))
        main.wait_stream(stream)
        # Memory is given back to the stream that took it; it must not be used again before the other stream is done.
        shared.record_stream(stream)
        for tensor in results[-1]:
            tensor.record_stream(main)
    return results
