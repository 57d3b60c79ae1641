"""Which prefixes are measured, and the labels that follow, against plain definitions."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from pqm_fast.sample.prefix_search import labels_from_rollouts, next_prefixes


def run(truth: list[int], search: str, known: dict[int, int] | None = None) -> dict[int, int]:
    """What is measured of a solution whose prefix t has truth[t - 1] right rollouts."""
    right = dict(known or {})
    while wanted := next_prefixes(len(truth), right, search):
        assert not set(wanted) & set(right)
        right |= {t: truth[t - 1] for t in wanted}
    return right


def labels(truth, search, label="hard", n=8, known=None):
    right = run(truth, search, known)
    return labels_from_rollouts(len(truth), right, dict.fromkeys(right, n), search, label)


@settings(deadline=None)  # the time of a loaded machine says nothing
@given(st.lists(st.integers(0, 8), min_size=1, max_size=40))
def test_full_search_measures_everything(truth):
    assert run(truth, "full") == dict(enumerate(truth, 1))
    assert labels(truth, "full") == [float(k > 0) for k in truth]
    assert labels(truth, "full", "soft") == [k / 8 for k in truth]


@settings(deadline=None)  # the time of a loaded machine says nothing
@given(st.integers(1, 300), st.floats(0, 1))
def test_binary_search_finds_the_first_error_of_monotone_prefixes(steps, share):
    first_error = 1 + int(share * steps)  # steps + 1: there is none
    truth = [1 + t % 8 if t < first_error else 0 for t in range(1, steps + 1)]
    right = run(truth, "binary")
    binary = labels(truth, "binary")
    full = labels(truth, "full")
    assert binary == [y if t <= first_error else None for t, y in enumerate(full, 1)]
    assert len(right) <= 1 + math.ceil(math.log2(steps))
    if first_error > steps:
        assert right == {steps: truth[-1]}  # a right solution costs no rollout


@settings(deadline=None)  # the time of a loaded machine says nothing
@given(st.lists(st.integers(0, 2), min_size=1, max_size=40))
def test_binary_search_of_anything_ends_at_a_step_that_turns_from_good_to_hopeless(truth):
    right, binary = run(truth, "binary"), labels(truth, "binary")
    if truth[-1]:
        assert binary == [1.0] * len(truth)
        return
    t = binary.index(0.0) + 1
    assert binary == [1.0] * (t - 1) + [0.0] + [None] * (len(truth) - t)
    assert right[t] == 0
    assert t == 1 or right[t - 1] > 0


def test_what_is_known_is_not_asked_for():
    assert next_prefixes(3, {3: 1}, "full") == [1, 2]
    assert next_prefixes(3, {3: 1}, "binary") == []
    assert next_prefixes(1, {1: 0}, "binary") == next_prefixes(1, {1: 0}, "full") == []
    assert next_prefixes(8, {8: 0}, "binary") == [4]
    assert next_prefixes(8, {}, "binary") == [8]
