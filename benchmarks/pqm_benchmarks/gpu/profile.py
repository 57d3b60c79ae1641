"""Profiles one training step: the idle share of the GPU, the longest kernels, and the share of attention."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from pqm_benchmarks.gpu.job import Job
from pqm_benchmarks.gpu.speed import TRAIN
from pqm_benchmarks.shared.attempts import attempt_alone
from pqm_benchmarks.shared.shapes import ALL_SHAPES, AnyShape
from pqm_benchmarks.shared.workload import make_workload
from pqm_benchmarks.train.ways.ladder import WAYS
from pqm_fast.errors import PQMError

LONGEST = 10
ATTENTION = ("flash", "fmha", "attention", "sdpa", "sum_rows")  # in names of kernels, PyTorch's and Triton's
Span = tuple[str, float, float]
"""A kernel: its name, start and end in us."""


def profile_steps(job: Job) -> None:
    """Stores the figures of a step of each model.

    Raises:
        PQMError: a step cannot be profiled.
    """
    profiles: dict[str, Any] = {}
    failures: list[str] = []
    shapes: tuple[AnyShape, ...] = ("Qwen2.5-0.5B", "Qwen2.5-1.5B") if job.on_gpu else ("tiny",)
    for shape in shapes:
        of_shape, why = attempt_alone(partial(_step, job, shape))
        if why is not None:
            failures.append(f"{shape}: {why}")
            continue
        profiles[shape] = of_shape
        lines = (
            f"{name}: idle {step['idle']:.1%} of {step['wall_us'] / 1e3:,.1f} ms, attention {step['attention']:.1%}"
            for name, step in profiles.items()
        )
        job.store(headline="; ".join(lines), profiles=profiles)
        for kernel, share in of_shape["longest"]:
            print(f"{shape}: {share:6.1%}  {kernel}", flush=True)
    if failures:
        raise PQMError("; ".join(failures))


def _step(job: Job, shape: AnyShape) -> dict[str, Any]:
    device = torch.device(job.device)
    name = "all" if job.on_gpu else "packed"
    way, setting = WAYS[name], TRAIN[shape][name]
    questions = make_workload(6 if job.on_gpu else 1, 0, vocabulary=min(32_000, ALL_SHAPES[shape].vocab_size))
    config = ALL_SHAPES[shape].config()
    step = way.build(config, device, torch.bfloat16 if job.on_gpu else torch.float32, setting)
    [batches] = map(step.ahead, way.plan(questions, 1, setting, device).steps)
    for _ in range(3):
        step(batches)()
    # only one activity: recording the host as well would slow a GPU down
    activities = [ProfilerActivity.CUDA if job.on_gpu else ProfilerActivity.CPU]
    for _ in range(2):  # the first time, the profiler itself has to start
        with profile(activities=activities) as profiled:
            step(batches)()
    return figures(spans(profiled.events(), job.on_gpu))


def spans(events: Iterable[Any], on_gpu: bool) -> list[Span]:
    """Kernels and copies on the GPU, without the ranges that PyTorch names there (an optimizer's step, compiled code).
    On a CPU these are the operations that call no other operation."""
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == kind and not event.is_user_annotation and (on_gpu or not event.cpu_children)
    ]


def figures(kernels: Sequence[Span]) -> dict[str, Any]:
    """Returns `wall_us` from the start of the first kernel to the end of the last one, the share of it in which no
    kernel runs (`idle`), the share of `attention` in the time of all kernels, and the `longest` kernels: [name, share]
    each.

    Raises:
        PQMError: there are no kernels.
    """
    if not kernels:
        raise PQMError("the profiler has seen no kernel")
    start, end = min(k[1] for k in kernels), max(k[2] for k in kernels)
    busy, until = 0.0, start
    for _, begin, stop in sorted(kernels, key=lambda k: k[1]):  # they may overlap
        busy += max(0.0, stop - max(begin, until))
        until = max(until, stop)
    times: dict[str, float] = {}
    for name, begin, stop in kernels:
        times[name] = times.get(name, 0.0) + stop - begin
    total = sum(times.values())
    longest = sorted(times.items(), key=lambda item: -item[1])[:LONGEST]
    attention = sum(time for name, time in times.items() if any(word in name.lower() for word in ATTENTION))
    return {
        "wall_us": end - start,
        "idle": 1 - busy / (end - start),
        "attention": attention / total,
        "kernels": len(kernels),
        "longest": [[name, time / total] for name, time in longest],
    }
