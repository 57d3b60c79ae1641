"""Seconds that a call takes. On a GPU, calls take turns over inputs that together exceed the L2 cache."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pqm_fast.errors import PQMError

Call = Callable[[], tuple[Tensor, ...]]
CALLS_PER_GRAPH = 10  # at least this many, so that launching a graph is a small part of what is measured
SECONDS_PER_MEDIAN = 0.15
FEWEST_REPEATS = 5


def gpu_seconds(calls: Sequence[Call], repeats: int) -> tuple[float, str | None]:
    """(seconds that a call takes on the GPU, why no CUDA graph was used, or None).

    The time is the median over replays of a CUDA graph in which `calls` take turns. If they cannot be captured, it is
    the median between events around single calls, gaps between launches included.

    Raises:
        PQMError: replaying the graph gives results other than those of the calls.
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
        return seconds_between_events([calls[i % len(calls)] for i in range(repeats)]), str(error)
    graph.replay()
    # what is timed must be what was checked
    for call_outputs, call in zip(outputs, calls, strict=True):
        for output, expected in zip(call_outputs, call(), strict=True):
            difference = torch.linalg.vector_norm(output.float() - expected.float())
            if not difference <= 1e-2 * torch.linalg.vector_norm(expected.float()):  # some calls sum with atomics
                raise PQMError(
                    "a CUDA graph gave other results than the calls in it; nothing is timed until that is fixed"
                )
    seconds = seconds_between_events([graph.replay] * 2) / count
    replays = _repeats(seconds * count, repeats)
    return seconds_between_events([graph.replay] * replays) / count, None


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
    # Outputs are held for a whole turn, so that no gradient is written where the previous one is still in the L2.
    outputs: list[tuple[Tensor, ...]] = [()] * len(calls)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for i in range(count):
            outputs[i % len(calls)] = calls[i % len(calls)]()
    return graph, outputs, count


def seconds_between_events(launches: Sequence[Callable[[], object]]) -> float:
    """Median time of a launch on the GPU; the launches are queued without waiting."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(launches) + 1)]
    events[0].record()
    for launch, event in zip(launches, events[1:], strict=True):
        launch()
        event.record()
    torch.cuda.synchronize()
    spans = [before.elapsed_time(after) for before, after in itertools.pairwise(events)]
    return statistics.median(spans) / 1e3


def wall_seconds(calls: Sequence[Call], repeats: int, device: torch.device) -> float:
    """Seconds that a call takes, Python and launches included: the median over batches of calls. The device is waited
    for once in each batch."""

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


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds from the start of `work` until the device has finished it."""
    _wait(device)
    started = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - started


def laps(work: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each repetition of `work`: at least one, and as many more as fit into `seconds`."""
    taken = [timed(work, device)]
    while sum(taken) + taken[-1] < seconds:
        taken.append(timed(work, device))
    return taken


def _repeats(seconds: float, most: int) -> int:
    """The number of measurements in a median, if each of them takes this many seconds."""
    return min(most, max(FEWEST_REPEATS, int(SECONDS_PER_MEDIAN / seconds)))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
