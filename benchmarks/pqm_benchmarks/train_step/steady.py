"""Steady state: the fastest setting that fits, then passes over the same trajectories, and the device's own rate."""

import gc
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from pqm_benchmarks.measure import gpu_seconds, wall_seconds
from pqm_benchmarks.train_step.way import Plan, Questions, Setting, Way

# Dense bfloat16 peak of a device, TFLOP/s, by the start of what its name has after "NVIDIA "; the first one counts.
PEAKS = {
    "H200 NVL": 835.0,
    "H200": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
}
MATRIX = {"cuda": 8192, "cpu": 256}


class Laps(NamedTuple):
    """Passes over all trajectories, in a model made anew."""

    seconds: list[float]
    loss: float
    """Of the first optimizer step, before any update."""
    peak_bytes: int | None
    """The most memory that tensors held at a time, from the first pass on; None on a CPU."""


class Case(NamedTuple):
    """What all ways of one model are given."""

    config: Any
    questions: Questions
    device: torch.device
    dtype: torch.dtype


def peak_of(device_name: str) -> tuple[str, float] | None:
    """(what it is the peak of, TFLOP/s) or None for a device that is not in the table."""
    name = device_name.removeprefix("NVIDIA ")
    return next(((model, peak) for model, peak in PEAKS.items() if name.startswith(model)), None)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """TFLOP/s of one product of large square matrices with random numbers."""
    size = MATRIX[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def product() -> tuple[torch.Tensor, ...]:
        return (torch.mm(a, b),)

    seconds = gpu_seconds([product], 30)[0] if device.type == "cuda" else wall_seconds([product], 10, device)
    return 2 * size**3 / seconds / 1e12


def try_settings(way: Way, case: Case, tries: int) -> list[dict[str, Any]]:
    """Times the second of two optimizer steps over all trajectories of the case in each setting.

    Within a family, micro-batches shrink until that is slower. Returns {"setting", "seconds", "loss", "why"}: seconds
    over the excess of the plan, the loss of the first step, and why there are none.
    """
    tried: list[dict[str, Any]] = []
    for family in way.families:
        for setting in family:
            if len(tried) == tries:
                return tried
            fastest = min((t["seconds"] for t in tried if t["seconds"]), default=None)
            found, why = attempt(partial(_one_step, way, case, setting))
            seconds, loss = found or (None, None)
            tried.append({"setting": setting, "seconds": seconds, "loss": loss, "why": why})
            if found and fastest and seconds > fastest:
                break
            if not found and why != OUT_OF_MEMORY:
                return tried  # smaller batches would not mend that
    return tried


def _one_step(way: Way, case: Case, setting: Setting) -> tuple[float, float]:
    """(seconds of the second step over its excess, loss of the first)."""
    step = way.build(case.config, case.device, case.dtype, setting)
    plan = way.plan(case.questions, 1, setting, case.device)
    [batches] = map(step.ahead, plan.steps)
    loss = step(batches)()
    return _timed(lambda: step(batches), case.device) / plan.excess, loss


def run_laps(way: Way, case: Case, setting: Setting, plan: Plan, seconds: float) -> Laps:
    """A pass over the plan to warm up (code is compiled for every shape that there is), then passes that are timed:
    at least one, and more for so many seconds."""
    step = way.build(case.config, case.device, case.dtype, setting)
    steps = [step.ahead(batches) for batches in plan.steps]
    [loss, *_] = [step(batches) for batches in steps]
    if case.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()

    def lap() -> None:
        for batches in steps:
            step(batches)

    laps = [_timed(lap, case.device)]
    while sum(laps) + laps[-1] < seconds:
        laps.append(_timed(lap, case.device))
    return Laps(laps, loss(), torch.cuda.max_memory_allocated() if case.device.type == "cuda" else None)


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of work that is queued, and waited for once."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


OUT_OF_MEMORY = "out of memory"


def attempt(work: Callable[[], Any]) -> tuple[Any, str | None]:
    """(result, None), or (None, why there is none): a way that fails must not end the measurement of the others."""
    try:
        return work(), None
    except Exception as error:  # whatever another's model raises; what it was stands in the results
        if isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error):
            return None, OUT_OF_MEMORY
        traceback.print_exc()
        return None, f"{type(error).__name__}: {error}"
    finally:
        release()


def release() -> None:
    """Gives back what a way held: models, cached memory, compiled code."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fastest(tried: Sequence[dict[str, Any]]) -> list[Setting]:
    """The settings that ran, the fastest first."""
    return [t["setting"] for t in sorted((t for t in tried if t["seconds"]), key=lambda t: t["seconds"])]
