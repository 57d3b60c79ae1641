"""Steady state: looks for the fastest setting that fits, and times passes over the same trajectories."""

from typing import Any, NamedTuple

import torch

from pqm_benchmarks.comparison.rounds import Setting
from pqm_benchmarks.shared import attempts, devices, timing
from pqm_benchmarks.shared.workload import Questions
from pqm_benchmarks.train.ways.way import PassPlan, TrainingWay


class Laps(NamedTuple):
    """Timed passes over all trajectories, in a new model."""

    seconds: list[float]
    loss: float
    """Loss of the first optimizer step, before any update."""
    peak_bytes: int | None
    """The most bytes that tensors held at any time after the first pass; None on a CPU."""


class Case(NamedTuple):
    """The input of all ways for one model; `config` is that of transformers."""

    config: Any
    questions: Questions
    device: torch.device
    dtype: torch.dtype


def try_settings(way: TrainingWay, case: Case, tries: int) -> list[dict[str, Any]]:
    """Times the second of two optimizer steps over all trajectories of the case in each setting, until smaller
    micro-batches are slower. Returns {"setting", "seconds", "loss", "why"} for each: `seconds` are divided by the
    excess of the plan, `loss` is that of the first step (absent if it failed), `why` is the reason of a failure."""

    def run(setting: Setting) -> dict[str, Any]:
        seconds, loss = one_step(way, case, setting)
        return {"seconds": seconds, "loss": loss}

    return attempts.try_settings(way.families, run, tries)


def one_step(way: TrainingWay, case: Case, setting: Setting) -> tuple[float, float]:
    """(seconds of the second step divided by the excess of its plan, loss of the first step)."""
    step = way.build(case.config, case.device, case.dtype, setting)
    plan = way.plan(case.questions, 1, setting, case.device)
    [batches] = map(step.ahead, plan.steps)
    loss = step(batches)()
    return timing.timed(lambda: step(batches), case.device) / plan.excess, loss


def run_laps(way: TrainingWay, case: Case, setting: Setting, plan: PassPlan, seconds: float) -> Laps:
    """A pass over the plan to warm up, in which code is compiled for every shape, then timed passes: at least one, and
    as many more as fit into `seconds`."""
    step = way.build(case.config, case.device, case.dtype, setting)
    steps = [step.ahead(batches) for batches in plan.steps]
    [loss, *_] = [step(batches) for batches in steps]
    devices.watch_memory(case.device)

    def lap() -> None:
        for batches in steps:
            step(batches)

    return Laps(timing.laps(lap, case.device, seconds), loss(), devices.peak_bytes(case.device))
