"""Time, memory and copy bandwidth. On a GPU, calls take turns over inputs that together exceed the L2."""

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pqm_fast.errors import PQMError

Call = Callable[[], tuple[Tensor, ...]]
CALLS_PER_GRAPH = 10  # at least; launching a graph is then a small part of what is measured
SECONDS_PER_MEDIAN = 0.15
FEWEST = 5
COPY_BYTES = {"cuda": 2**31, "cpu": 2**25}


def gpu_seconds(calls: Sequence[Call], repeats: int) -> tuple[float, str | None]:
    """Seconds a call takes on the GPU: median over replays of a CUDA graph in which `calls` take turns.

    Where one cannot be captured, the median between events around single calls, gaps between launches
    included, and the reason.
    """
    for call in calls:
        call()
    try:
        with torch.cuda.stream(torch.cuda.current_stream()):  # a capture that fails leaves its own stream behind
            graph, outputs, count = _capture(calls)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.synchronize()
        return _between_events([calls[i % len(calls)] for i in range(repeats)], 1), str(error)
    graph.replay()
    # what is timed must be what was checked
    for output, call in zip(outputs, calls, strict=True):
        for found, expected in zip(output, call(), strict=True):
            difference = torch.linalg.vector_norm(found.float() - expected.float())
            if not difference <= 1e-2 * torch.linalg.vector_norm(expected.float()):  # some sum with atomics
                raise PQMError(
                    "a CUDA graph gave other results than the calls in it; nothing is timed until that is mended"
                )
    seconds = _between_events([graph.replay] * 2, count)
    replays = _repeats(seconds * count, repeats)
    return _between_events([graph.replay] * replays, count), None


def _capture(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, list[tuple[Tensor, ...]], int]:
    """The graph, the last outputs of each call, and how many calls the graph holds."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    torch.cuda.set_sync_debug_mode("error")  # a call that waits for the device shows here, before a capture breaks
    try:
        with torch.cuda.stream(stream):
            for _ in range(3):
                calls[0]()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(stream)
    count = len(calls) * -(-CALLS_PER_GRAPH // len(calls))
    # Outputs are held for a whole turn, so that a gradient is not written where the last one still is in the L2.
    outputs: list[tuple[Tensor, ...]] = [()] * len(calls)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(count):
            outputs[i % len(calls)] = calls[i % len(calls)]()
    return graph, outputs, count


def _between_events(launches: Sequence[Callable[[], object]], calls_in_each: int) -> float:
    """Median over the launches, which are queued without waiting."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(launches) + 1)]
    events[0].record()
    for launch, event in zip(launches, events[1:], strict=True):
        launch()
        event.record()
    torch.cuda.synchronize()
    spans = [before.elapsed_time(after) for before, after in itertools.pairwise(events)]
    return statistics.median(spans) / 1e3 / calls_in_each


def wall_seconds(calls: Sequence[Call], repeats: int, device: torch.device) -> float:
    """Seconds a call takes with Python and its launches: the median over batches of calls, each waited for once."""

    def batch(size: int) -> float:
        _wait(device)
        started = time.perf_counter()
        for i in range(size):
            calls[i % len(calls)]()
        _wait(device)
        return (time.perf_counter() - started) / size

    batch(len(calls))
    seconds = batch(1)
    size = max(1, min(100, int(SECONDS_PER_MEDIAN / repeats / seconds)))
    return statistics.median(batch(size) for _ in range(_repeats(size * seconds, repeats)))


def extra_bytes(call: Call) -> int:
    """The most memory a call holds at a time on the GPU, without its inputs and outputs; as asked for, unrounded."""
    call()
    torch.cuda.synchronize()
    gc.collect()  # what is freed in between would count as memory that the call gave back
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    torch.cuda.reset_peak_memory_stats()
    outputs = call()
    torch.cuda.synchronize()
    peak = torch.cuda.memory_stats()["requested_bytes.all.peak"]
    return peak - before - sum(output.numel() * output.element_size() for output in outputs)


def copy_rate(device: torch.device) -> float:
    """GB/s, bytes read plus written, of copying on the device: what a kernel that only moves bytes can hope for."""
    size = COPY_BYTES[device.type]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> tuple[Tensor, ...]:
        return (target.copy_(source),)

    if device.type == "cuda":
        copy()
        seconds = _between_events([copy] * 30, 1)
    else:
        seconds = wall_seconds([copy], 30, device)
    return 2 * size / seconds / 1e9


def _repeats(seconds: float, most: int) -> int:
    """How many measurements of so many seconds a median is of."""
    return min(most, max(FEWEST, int(SECONDS_PER_MEDIAN / seconds)))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
