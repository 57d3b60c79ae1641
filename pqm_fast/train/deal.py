"""Deals the micro-batches of an optimizer step to the ranks, by the time that each is predicted to take.

All ranks compute a micro-batch at the same time, and wait for the slowest: sharded weights are gathered layer by layer.
Such a round takes micro-batches that take about as long as each other.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from pqm_fast.data.batches import PackingUnits

# PyTorch and flash-attn reach about two thirds of the rate of large matrix products in causal attention (stated, not
# measured here); an operation of attention then takes 1.5 times as long.
ATTENTION_SLOWNESS = 1.5
Work = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(tokens [M], pairs [M]) of micro-batches -> their predicted time [M], in any unit."""
NOTHING = np.zeros(0, np.int64)
"""The micro-batch of a rank that has none in a round."""


def predicted_work(tokens: np.ndarray, pairs: np.ndarray, *, parameters: int, depth: int, width: int) -> np.ndarray:
    """The time of micro-batches, forward and backward, in operations of a large matrix product.

    `tokens` that are computed and `pairs` of a token and one that it attends to, in each micro-batch [M]; `parameters`
    of the decoder's `depth` layers; `width`: the heads of a layer together. A token costs 6 operations for each
    parameter; a pair costs 4 operations for each number of its heads forward, and 10 backward, where flash attention
    computes the scores again.
    """
    return 6.0 * parameters * tokens + ATTENTION_SLOWNESS * 14.0 * depth * width * pairs


def deal(work: np.ndarray, ranks: int) -> list[list[int]]:
    """Divides micro-batches among ranks, by their predicted `work` [M].

    Returns rounds: in each, the number of the micro-batch of each rank, or -1 for a rank that has none because M is not
    a multiple of `ranks`. The shortest micro-batches share the round that is not full. One rank keeps the order.
    """
    if ranks == 1:
        return [[number] for number in range(len(work))]
    longest_first = np.argsort(-np.asarray(work), kind="stable").tolist()
    rounds = [longest_first[i : i + ranks] for i in range(0, len(longest_first), ranks)]
    return [numbers + [-1] * (ranks - len(numbers)) for numbers in rounds]


class Shape(NamedTuple):
    """The numbers of a model that its work depends on; see `predicted_work`."""

    parameters: int
    depth: int
    width: int


def shape_of_model(model: Any) -> Shape:
    """The shape of a `StepQModel`."""
    config = model.config.get_text_config()
    parameters = sum(p.numel() for p in model.parameters()) - model.embedding.numel()
    return Shape(parameters, config.num_hidden_layers, config.hidden_size)


def work_of_model(model: Any) -> Work:
    """`predicted_work` for a `StepQModel`."""
    parameters, depth, width = shape_of_model(model)
    return partial(predicted_work, parameters=parameters, depth=depth, width=width)


def dealt(batches: Sequence[np.ndarray], units: PackingUnits, work: Work, ranks: int) -> list[list[np.ndarray]]:
    """The micro-batches of each rank, [ranks][rounds], from all of an optimizer step or of an evaluation.

    `batches` are trajectory numbers [B]. A rank without one in the last round has `NOTHING` there.
    """
    rounds = deal(work(units.tokens_of(batches), units.pairs_of(batches)), ranks)
    return [[batches[numbers[r]] if numbers[r] >= 0 else NOTHING for numbers in rounds] for r in range(ranks)]
