"""Where the time of one training step goes: is the GPU idle, which kernels are longest, how much is attention."""

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
    """Raises PQMError if a step cannot be profiled."""
    found: dict[str, Any] = {}
    wrong: list[str] = []
    shapes: tuple[AnyShape, ...] = ("Qwen2.5-0.5B", "Qwen2.5-1.5B") if job.on_gpu else ("tiny",)
    for shape in shapes:
        own, why = attempt_alone(partial(_step, job, shape))
        if why is not None:
            wrong.append(f"{shape}: {why}")
            continue
        found[shape] = own
        told = (
            f"{shape}: idle {own['idle']:.1%} of {own['wall_us'] / 1e3:,.1f} ms, attention {own['attention']:.1%}"
            for shape, own in found.items()
        )
        job.store(headline="; ".join(told), profiles=found)
        for name, share in own["longest"]:
            print(f"{shape}: {share:6.1%}  {name}", flush=True)
    if wrong:
        raise PQMError("; ".join(wrong))


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
    # one alone: on a GPU, to note what the host does would make it slower
    activities = [ProfilerActivity.CUDA if job.on_gpu else ProfilerActivity.CPU]
    for _ in range(2):  # the first time the profiler itself has to start
        with profile(activities=activities) as profiled:
            step(batches)()
    return figures(spans(profiled.events(), job.on_gpu))


def spans(events: Iterable[Any], on_gpu: bool) -> list[Span]:
    """Kernels and copies on the GPU, without the ranges that PyTorch names there (an optimizer's step, compiled code);
    on a CPU the operations that call no other."""
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return [
        (event.name, event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == kind and not event.is_user_annotation and (on_gpu or not event.cpu_children)
    ]


def figures(kernels: Sequence[Span]) -> dict[str, Any]:
    """`wall_us` from the first kernel's start to the last one's end, the share of it in which none runs (`idle`), the
    share of attention in the time of all kernels, and those that take longest, [name, share] each.

    Raises:
        PQMError: there is none.
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
