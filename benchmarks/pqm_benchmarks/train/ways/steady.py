"""Steady state: the fastest setting that fits, then passes over the same trajectories."""

from typing import Any, NamedTuple

import torch

from pqm_benchmarks.shared import attempts, devices
from pqm_benchmarks.train.ways.way import Plan, Questions, Setting, Way


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


def try_settings(way: Way, case: Case, tries: int) -> list[dict[str, Any]]:
    """Times the second of two optimizer steps over all trajectories of the case in each setting, until smaller
    micro-batches are slower. Returns {"setting", "seconds", "loss", "why"}: seconds over the excess of the plan, the
    loss of the first step (absent if it failed), and why there are none."""

    def run(setting: Setting) -> dict[str, Any]:
        seconds, loss = one_step(way, case, setting)
        return {"seconds": seconds, "loss": loss}

    return attempts.try_settings(way.families, run, tries)


def one_step(way: Way, case: Case, setting: Setting) -> tuple[float, float]:
    """(seconds of the second step over its excess, loss of the first)."""
    step = way.build(case.config, case.device, case.dtype, setting)
    plan = way.plan(case.questions, 1, setting, case.device)
    [batches] = map(step.ahead, plan.steps)
    loss = step(batches)()
    return devices.timed(lambda: step(batches), case.device) / plan.excess, loss


def run_laps(way: Way, case: Case, setting: Setting, plan: Plan, seconds: float) -> Laps:
    """A pass over the plan to warm up (code is compiled for every shape that there is), then passes that are timed:
    at least one, and more for so many seconds."""
    step = way.build(case.config, case.device, case.dtype, setting)
    steps = [step.ahead(batches) for batches in plan.steps]
    [loss, *_] = [step(batches) for batches in steps]
    devices.watch_memory(case.device)

    def lap() -> None:
        for batches in steps:
            step(batches)

    found = devices.laps(lap, case.device, seconds)
    return Laps(found, loss(), devices.peak_bytes(case.device))
