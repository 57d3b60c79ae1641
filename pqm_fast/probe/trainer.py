"""Trains heads of any layer and loss on the same data: what they have in common is made once."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from pqm_fast.common.combination import Combination
from pqm_fast.probe.frozen import FrozenDecoder
from pqm_fast.probe.heads import Head, HeadSpec
from pqm_fast.probe.layout import Layout, held_out_layout, training_layout
from pqm_fast.probe.options import ProbeConfig
from pqm_fast.probe.splits import Sides, split
from pqm_fast.probe.train_head import HeadOptions, scale_of, train_head
from pqm_fast.train.split import Split


class HeadTrainer:
    """`notes` gets what a user should know about the data of each loss."""

    def __init__(self, config: ProbeConfig, decoder: FrozenDecoder, sides: Sides, notes: list[str]):
        self.config, self.decoder, self.sides, self.notes = config, decoder, sides, notes
        self.options = HeadOptions(
            decoder.norm, config.temperature, config.noise, config.epochs, config.patience, config.weight_decay
        )
        self.split = cache(self._split)
        self._layouts: dict[Any, tuple[Layout, Layout]] = {}
        self._states: tuple[Any, Any] = (None, None)

    def _split(self, combination: Combination) -> tuple[Split, Split]:
        return split(self.config, combination, self.sides, self.notes)

    def layouts(self, combination: Combination, seed: int) -> tuple[Layout, Layout]:
        """The batches to train on, and those that are held out; the same for losses that read the same of the data."""
        training, held_out = self.split(combination)
        key = (seed, *_reads(training), *_reads(held_out))
        if key not in self._layouts:
            device, steps = self.decoder.device, self.config.batch_steps
            self._layouts[key] = (
                training_layout(self.sides.training, training, steps, seed, device),
                held_out_layout(self.sides.held_out, held_out, steps, device),
            )
        return self._layouts[key]

    def train(self, spec: HeadSpec) -> Head:
        layouts = self.layouts(spec.combination, spec.seed)
        # neighbouring heads of the grid read the same states
        key = (spec.layer, id(layouts))
        if self._states[0] != key:
            device = self.decoder.device
            self._states = None, None  # before the next ones take memory
            states = (
                layouts[0].take(self.sides.training.rows(spec.layer), device),
                layouts[1].take(self.sides.held_out.rows(spec.layer), device),
            )
            self._states = key, (*states, scale_of(states[0], self.options.norm))
        training, held_out, scale = self._states[1]
        question = self.sides.held_out.dataset.question
        with _one_thread():
            return train_head(spec, (layouts[0], training), (layouts[1], held_out), question, scale, self.options)


@contextmanager
def _one_thread() -> Iterator[None]:
    """On a CPU a head's operations are so small that a second thread costs more than it does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _reads(split: Split) -> tuple[Any, ...]:
    """What decides which steps a loss reads, and what it knows of them."""
    return split.whole_questions, split.every_step, split.outcomes is not None, split.indices.tobytes()
