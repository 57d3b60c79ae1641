"""The order of the optimizer steps over the data, how many there are, and the learning rate of each."""

from itertools import pairwise

import numpy as np
import pytest

from pqm_fast.train.run import prepare
from pqm_fast.train.schedule import learning_rate


def test_optimizer_steps_continue_where_they_stopped(configure):
    run = prepare(configure(accumulation=2, max_steps=30))
    whole = [[m.tolist() for m in step] for step in run.order.steps(0, run.total_steps)]
    assert len(whole) == 30
    assert [[m.tolist() for m in step] for step in run.order.steps(17, run.total_steps)] == whole[17:]


@pytest.mark.parametrize(("accumulation", "epochs"), [(1, 1), (3, 3), (1000, 3)])
def test_each_pass_sees_each_trajectory_once(configure, accumulation, epochs):
    """No optimizer step mixes two passes; instead, the last step of a pass is shorter."""
    run = prepare(configure(max_steps=None, epochs=epochs, accumulation=accumulation))
    steps = list(run.order.steps(0, run.total_steps))
    assert all(len(step) <= accumulation for step in steps)
    seen = np.concatenate([m for step in steps for m in step]).reshape(epochs, -1)
    for epoch in seen:
        assert sorted(epoch) == sorted(run.training.indices)


def test_half_a_pass(configure):
    whole, half = (prepare(configure(max_steps=None, epochs=epochs)).total_steps for epochs in (1, 1.5))
    assert 0 <= half - 1.5 * whole < 1.5


def test_learning_rate_schedule(configure):
    config = configure(learning_rate=1.0, warmup_steps=4, final_lr=0.1)
    rates = [learning_rate(step, 104, config) for step in range(105)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(0.55)  # half way down from 1 to 0.1
    assert rates[104] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[4:]))


def test_warm_up_is_a_share_of_all_steps(configure):
    config = configure(learning_rate=1.0, warmup_fraction=0.1)
    assert [learning_rate(step, 20, config) for step in range(3)] == [0.5, 1.0, 1.0]
    assert learning_rate(2, 100, configure(learning_rate=1.0)) == 1.0  # 3%
