"""The cases of `idle`: models, layouts, accumulation and ranks, on the plans of the made-up workload."""

import itertools
import math
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from pqm_benchmarks.scaling.cases import ACCUMULATIONS, IDLE_SHAPES, MANY, RANKS, SHAPE
from pqm_benchmarks.scaling.epoch import LAYOUTS, MicroBatches, Workload, micro_batches
from pqm_benchmarks.scaling.idle import Timed, dealt, epoch_time, least_idle, steady_idle
from pqm_benchmarks.scaling.rates import Rates
from pqm_benchmarks.shared.shapes import ALL_SHAPES, LARGE_SHAPES

MULTIPLE = 128  # of the tokens of a micro-batch


def summary(workload: Workload, layout: str, budget: int, seed: int) -> dict[str, Any]:
    """{"trajectories", "tokens" to compute, "divided" questions, "micro_batches", "fill", "pairs_of_a_token"} of the
    first epoch."""
    units = workload.units(layout, budget)
    batches = micro_batches(units, budget, seed)
    tokens = int(batches.tokens.sum())
    return {
        "trajectories": len(workload.tokens),
        "tokens": tokens,
        "divided": units.divided,
        "micro_batches": len(batches.members),
        "fill": tokens / budget / len(batches.members),
        "pairs_of_a_token": float(batches.pairs.sum()) / tokens,
    }


def planning_seconds(workload: Workload, budget: int, seed: int) -> dict[str, dict[str, float]]:
    """{layout: {"units", "batches", "deal"}}: seconds on this host, of which every rank needs "units" once in a run and
    the others once in an epoch. "deal" is for one model and MANY ranks."""
    seconds = {}
    for layout in ("plain", "tree"):
        clock = [time.perf_counter()]
        units = workload.units(layout, budget)
        clock.append(time.perf_counter())
        units.batches(budget, seed=seed)
        clock.append(time.perf_counter())
        timed = Timed.of(micro_batches(units, budget, seed), ALL_SHAPES[SHAPE], Rates(), budget)
        started = time.perf_counter()
        dealt(timed.work, MANY, 1)
        taken = [*np.diff(clock).tolist(), time.perf_counter() - started]
        seconds[layout] = dict(zip(("units", "batches", "deal"), taken, strict=True))
    return seconds


def steady_batches(workload: Workload, layout: str, budget: int, seed: int, at_least: int) -> MicroBatches:
    """The plans of as many epochs as have `at_least` micro-batches: a larger data set would have them in one epoch."""
    units = workload.units(layout, budget)
    epochs = -(-at_least * budget // int(units.sizes.sum()))
    return micro_batches(units, budget, seed, epochs)


def idle_rows(workload: Workload, budget: int, seed: int, rates: Rates) -> list[dict[str, Any]]:
    """{"shape", "layout", "padded", "accumulation", "ranks", "idle", "least"} of full optimizer steps; "least" is the
    result of `least_idle`, None with accumulation or without padding."""
    rows = []
    for layout in LAYOUTS:
        batches = steady_batches(workload, layout, budget, seed, max(RANKS) * max(ACCUMULATIONS))
        alone = replace(batches, pairs=batches.heaviest)
        for name, padded in itertools.product(IDLE_SHAPES, (True, False)):
            shape = (ALL_SHAPES | LARGE_SHAPES)[name]
            timed, heaviest = (Timed.of(b, shape, rates, budget if padded else None) for b in (batches, alone))
            for times, ranks in itertools.product(ACCUMULATIONS, RANKS):
                least = least_idle(timed, heaviest, ranks) if padded and times == 1 else None
                row = {"shape": name, "layout": layout, "padded": padded, "accumulation": times, "ranks": ranks}
                rows.append(row | {"idle": steady_idle(timed, ranks, times), "least": least})
    return rows


def epoch_rows(workload: Workload, budget: int, seed: int, rates: Rates) -> list[dict[str, Any]]:
    """{"layout", "ranks", "given" and "evened": fields of EpochTime} of the first epoch, in micro-batches of `budget`
    tokens and in those that make it a whole number of rounds."""
    rows = []
    for layout in ("plain", "tree"):
        for ranks in RANKS:

            def timed(tokens: int, layout: str = layout) -> Timed:
                batches = micro_batches(workload.units(layout, tokens), tokens, seed)
                return Timed.of(batches, ALL_SHAPES[SHAPE], rates, tokens)

            given = timed(budget)
            rounds = -(-len(given.work) // ranks)
            fewest = max(budget * len(given.work) / (rounds * ranks), int(workload.lengths.max()))
            tokens = math.ceil(fewest / MULTIPLE) * MULTIPLE
            while len((evened := timed(tokens)).work) > rounds * ranks:
                tokens += MULTIPLE  # smaller micro-batches are filled less well
            rows.append(
                {
                    "layout": layout,
                    "ranks": ranks,
                    "given": asdict(epoch_time(given, ranks, budget)),
                    "evened": asdict(epoch_time(evened, ranks, tokens)),
                }
            )
    return rows
