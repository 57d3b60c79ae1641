"""The order of optimizer steps, how many there are, and the learning rate of each."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, islice

import numpy as np

from pqm_fast.data.batches import PackingUnits
from pqm_fast.train.config import TrainConfig
from pqm_fast.train.deal import Work
from pqm_fast.train.memory import Sizes


@dataclass(frozen=True)
class StepOrder:
    """Which trajectories each optimizer step takes. It follows from the seed, so that a resumed run sees the data that
    it would have seen without the interruption, and that every rank knows what the others compute."""

    units: PackingUnits
    """The training trajectories, in units that stay together."""
    sizes: Sizes
    seed: int
    work: Work
    """Predicts the time of micro-batches."""

    def steps(self, start: int, stop: int) -> Iterator[list[np.ndarray]]:
        """The micro-batches of each optimizer step from `start` to before `stop`, each as trajectory numbers [B]."""
        return islice(chain.from_iterable(self.epoch(number) for number in count()), start, stop)

    def epoch(self, number: int) -> list[list[np.ndarray]]:
        """The optimizer steps of one pass over the data. The last one may have fewer micro-batches than the others."""
        batches = self.units.batches(self.sizes.micro_batch_tokens, seed=self.seed, epoch=number)
        count = self.sizes.micro_batches
        return [batches[i : i + count] for i in range(0, len(batches), count)]

    def count_steps(self, epochs: float) -> int:
        """Optimizer steps in `epochs` passes, at least 1. The number of batches varies a little from pass to pass."""
        whole_passes, last_share = int(epochs), epochs - int(epochs)
        steps = sum(len(self.epoch(number)) for number in range(whole_passes))
        return max(1, steps + (math.ceil(last_share * len(self.epoch(whole_passes))) if last_share else 0))


def learning_rate(step: int, total: int, config: TrainConfig) -> float:
    """The learning rate of optimizer step `step` (from 0) of `total`: linear warm-up, then a cosine to final_lr."""
    warmup = config.warmup_steps if config.warmup_steps is not None else round(config.warmup_fraction * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_lr + (1 - config.final_lr) * cosine)
