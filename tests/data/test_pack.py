"""Packing: every trajectory exactly once, full batches, and the layout that the model reads."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqm_fast.data.batches import plan_batches
from pqm_fast.data.pack import pack
from pqm_fast.data.trajectory import Trajectory


def math_shepherd_lengths(count, seed=0):
    """The published length distribution: log-normal, mu 5.62, sigma 0.518 (mean about 316 tokens)."""
    lengths = np.random.default_rng(seed).lognormal(5.62, 0.518, count)
    return np.clip(lengths, 16, 4096).astype(np.int64)


@pytest.mark.parametrize("budget", [4096, 8192, 16384])
def test_fill_on_the_math_shepherd_distribution(budget):
    lengths = math_shepherd_lengths(30_000)
    batches = plan_batches(lengths, budget)
    assert sum(lengths[b].sum() for b in batches) / (len(batches) * budget) >= 0.97


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 50), max_size=200),
    budget=st.integers(50, 200),
    window=st.integers(1, 80),
    shuffle=st.booleans(),
)
def test_every_trajectory_is_in_one_batch_within_the_budget(lengths, budget, window, shuffle):
    lengths = np.array(lengths, dtype=np.int64)
    batches = plan_batches(lengths, budget, window=window, shuffle=shuffle)
    assert sorted(i for b in batches for i in b) == list(range(len(lengths)))
    assert all(0 < lengths[b].sum() <= budget for b in batches)


def test_plan_depends_on_seed_and_epoch_alone():
    lengths = math_shepherd_lengths(2000)

    def plan(**options):
        return [b.tolist() for b in plan_batches(lengths, 4096, **options)]

    assert plan(seed=1, epoch=2) == plan(seed=1, epoch=2)
    assert plan(seed=1, epoch=2) != plan(seed=1, epoch=3)
    assert plan(seed=1, epoch=2) != plan(seed=2, epoch=2)
    assert plan(shuffle=False, seed=1) == plan(shuffle=False, seed=2)


def test_long_trajectories_weigh_no_more_than_short_ones():
    """A mean over the trajectories of a batch gives each the weight 1 / batch size: it must not depend on length."""
    lengths = math_shepherd_lengths(40_000)
    weight = np.zeros(len(lengths))
    for batch in plan_batches(lengths, 16384):
        weight[batch] = 1 / len(batch)
    order = np.argsort(lengths)
    shortest, longest = weight[order[:4000]].mean(), weight[order[-4000:]].mean()
    assert longest / shortest == pytest.approx(1, abs=0.05)


def test_a_trajectory_longer_than_the_budget_is_refused():
    with pytest.raises(ValueError, match="11 tokens does not fit a budget of 10"):
        plan_batches(np.array([3, 11]), 10)


def trajectory(ids, rows, labels):
    return Trajectory(np.array(ids, np.int32), np.array(rows, np.int32), np.array(labels, np.float32))


FIRST = trajectory([7, 8, 9], [0, 2], [1, 0])
SECOND = trajectory([4, 5], [1], [np.nan])
THIRD = trajectory([1, 2, 3, 4], [1, 2, 3], [1, np.nan, 0])


def test_layout_of_a_packed_batch():
    batch = pack([(10, FIRST), (11, SECOND), (12, THIRD)], pad_to=12)
    assert batch.input_ids.tolist() == [7, 8, 9, 4, 5, 1, 2, 3, 4, 0, 0, 0]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 0, 0]
    assert batch.lengths == batch.path_lengths == (3, 2, 4)
    assert batch.paths is None
    assert batch.step_tokens.tolist() == [0, 2, 6, 8]  # the steps without a label are not listed
    assert batch.labels.tolist() == [1, 0, 1, 0]
    assert batch.cu_steps.tolist() == [0, 2, 2, 4]
    assert batch.members == (10, 11, 12)
    assert (batch.num_trajectories, batch.num_steps, batch.num_tokens) == (3, 4, 9)
    assert batch.cu_steps.dtype == torch.int32


def test_scoring_lists_every_step():
    batch = pack([(0, SECOND), (1, THIRD)], labelled_only=False)
    assert batch.step_tokens.tolist() == [1, 3, 4, 5]
    assert batch.labels.isnan().tolist() == [True, False, True, False]


def test_empty_batch_and_overfull_batch():
    assert pack([]).input_ids.shape == (0,)
    with pytest.raises(ValueError, match="9 tokens do not fit a batch of 8"):
        pack([(0, FIRST), (1, SECOND), (2, THIRD)], pad_to=8)
