"""How long ranks wait for each other: the micro-batches of each optimizer step are dealt as the trainer deals them."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np

from pqm_benchmarks.scaling.epoch import MicroBatches
from pqm_benchmarks.scaling.rates import Rates, layer_parameters, layer_seconds
from pqm_benchmarks.shared.shapes import Shape
from pqm_fast.train.deal import deal, predicted_work

MOST_STEPS = 256  # of a steady state: more would not change the second digit


@dataclass(frozen=True)
class Timed:
    """Micro-batches with the work that the trainer predicts and the seconds that the simulation takes."""

    work: np.ndarray  # [M]
    seconds: np.ndarray  # [M]

    @classmethod
    def of(cls, batches: MicroBatches, shape: Shape, rates: Rates, padded_to: int | None) -> "Timed":
        """`padded_to`: the tokens of every micro-batch, as on a GPU; None: they are not padded."""
        tokens = batches.tokens if padded_to is None else np.full(len(batches.tokens), float(padded_to))
        depth, parameters = shape.num_hidden_layers, layer_parameters(shape)
        work = predicted_work(
            tokens,
            batches.pairs,
            parameters=depth * parameters,
            depth=depth,
            width=shape.num_attention_heads * shape.head_dim,
        )
        forward, backward = layer_seconds(shape, tokens, batches.pairs, rates)
        return cls(work, depth * (forward + backward))


def dealt(work: np.ndarray, ranks: int, accumulation: int) -> list[list[list[int]]]:
    """For each optimizer step its rounds: the number of the micro-batch of each rank, -1 for none."""
    size = ranks * accumulation
    return [
        [[start + n if n >= 0 else -1 for n in numbers] for numbers in deal(work[start : start + size], ranks)]
        for start in range(0, len(work), size)
    ]


def time_of_rounds(seconds: np.ndarray, rounds: Iterable[list[int]]) -> tuple[float, float]:
    """(seconds that a rank computes, on average over the ranks; seconds until the slowest of each round is done)."""
    busy = wall = 0.0
    for numbers in rounds:
        taken = seconds[[n for n in numbers if n >= 0]]
        busy += float(taken.sum()) / len(numbers)
        wall += float(taken.max())
    return busy, wall


def steady_idle(timed: Timed, ranks: int, accumulation: int) -> float:
    """The share of their time that ranks wait for the slowest of a round, in full optimizer steps. There must be at
    least one."""
    size = ranks * accumulation
    count = min(len(timed.work) // size, MOST_STEPS) * size
    busy, wall = time_of_rounds(timed.seconds, chain.from_iterable(dealt(timed.work[:count], ranks, accumulation)))
    return 1 - busy / wall


def least_idle(timed: Timed, heaviest: Timed, ranks: int) -> float:
    """What no packing of whole units can go below, in full optimizer steps without accumulation: one rank has the
    heaviest unit of the step and nothing else to attend to, and all others have the same work.

    `heaviest`: the micro-batches with the pairs of their heaviest unit alone. All are padded to the same tokens.
    """
    busy = wall = 0.0
    for start in range(0, len(timed.work) // ranks * ranks, ranks):
        mean = float(timed.seconds[start : start + ranks].mean())
        busy += mean
        wall += max(mean, float(heaviest.seconds[start : start + ranks].max()))
    return 1 - busy / wall


@dataclass(frozen=True)
class EpochTime:
    """One pass over the data, its last and partial step included."""

    tokens: int
    """In a micro-batch."""
    micro_batches: int
    rounds: int
    idle: float
    """The share of their time that ranks wait, also those without a micro-batch in the last round."""
    seconds: float
    """Without communication."""


def epoch_time(timed: Timed, ranks: int, tokens: int) -> EpochTime:
    """Without accumulation; with it, the last round is just as full."""
    rounds = [numbers for step in dealt(timed.work, ranks, 1) for numbers in step]
    busy, wall = time_of_rounds(timed.seconds, rounds)
    return EpochTime(tokens, len(timed.work), len(rounds), 1 - busy / wall, wall)
