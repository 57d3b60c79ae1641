"""A way to score: batches made on the host, a model that scores them, and a count of what that computes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pqm_benchmarks.comparison.rounds import Setting
from pqm_benchmarks.shared.workload import Questions
from pqm_benchmarks.work.flops import RowCounts


class Batch(Protocol):
    """Several solutions on the host, padded or packed."""

    @property
    def input_ids(self) -> Tensor: ...
    @property
    def cu_steps(self) -> Tensor: ...
    @property
    def members(self) -> Sequence[int]: ...


class Scoring(Protocol):
    """A model that scores."""

    def ahead(self, batch: Any) -> Any:
        """Does everything for a batch that precedes the work of the device, and returns it on the device."""

    def __call__(self, ready: Any) -> Tensor:
        """Q-values [S] float32 of what `ahead` returned, on the device. Does not wait for it."""


@dataclass(frozen=True)
class ScoringWay:
    """One implementation of scoring."""

    title: str
    source: str
    """The implementation that it follows, and what is done in its favour."""
    families: tuple[tuple[Setting, ...], ...]
    """Settings, tried family by family, from large batches to small ones."""
    usual: Setting
    """The setting that is counted if nothing is timed."""
    batches: Callable[[Questions, Setting], Iterator[Batch]]
    """Makes each batch when it is asked for; `members` are indices of solutions, counted through all questions."""
    rows: Callable[[Sequence[Any]], RowCounts]
    """Counts the rows of its batches, without the tokens that fill a fixed token budget."""
    build: Callable[[Any, torch.device, torch.dtype], Scoring]
    """Makes a model from a transformers config, with random weights that are the same in every way."""
    excess: Callable[[Questions, Setting], float] = lambda questions, setting: 1.0
    """Work over the work for as many solutions of a whole data set, from which batches can be chosen better."""


def score(way: ScoringWay, scoring: Scoring, questions: Questions, setting: Setting) -> list[np.ndarray]:
    """Q-values of the steps of every solution. As in `Scorer`, the device works on a batch while the next ones are
    made, and is waited for at the end."""
    launched = [(batch, scoring(scoring.ahead(batch))) for batch in way.batches(questions, setting)]
    scores: list[np.ndarray] = [np.zeros(0)] * sum(map(len, questions))
    for batch, q_values in launched:
        by_member = np.split(q_values.cpu().numpy(), batch.cu_steps[1:-1].tolist())
        for i, member_scores in zip(batch.members, by_member, strict=True):
            scores[i] = member_scores
    return scores
