"""Beam search, DVTS and plain samples of one question: what they ask for, how they count, when they end."""

import pytest
from searches import config, solution

from pqm_fast.errors import PQMError
from pqm_fast.search.methods import Budget, Samples, Search


def names(solutions):
    return ["".join(piece for piece in s.pieces) for s in solutions]


def take(search, children, tokens=()):
    for count in tokens or [1] * len(children):
        search.budget.take(count)
    search.take(children)


def test_trees_of_dvts_do_not_compete():
    """N = 4, M = 2: two trees. Each continues the better of its two, although those of the second are all worse."""
    search = Search(config(method="dvts", n=4, m=2))
    assert names(search.parents()) == [""] * 4
    take(search, [solution(name, scores=[s]) for name, s in (("a", 8), ("b", 9), ("c", -3), ("d", -4))])
    assert names(search.parents()) == ["b", "b", "c", "c"]
    ends = [("be", 7, "stop"), ("bf", 6, ""), ("cg", -5, "stop"), ("ch", -4, "")]
    take(search, [solution(*name, scores=[s, s], end=end) for name, s, end in ends])
    assert names(search.parents()) == ["ch", "ch"]  # the first tree has ended
    take(search, [solution("c", "h", name, scores=[-4, -4, s], end="stop") for name, s in (("i", 0), ("j", -9))])
    assert search.parents() == []
    assert names(search.solutions()) == ["be", "cg", "chi", "chj"]


def test_beam_search_is_one_tree():
    search = Search(config(method="beam", n=4, m=2))
    search.parents()
    take(search, [solution(name, scores=[s]) for name, s in (("a", 8), ("b", 9), ("c", -3), ("d", -4))])
    assert names(search.parents()) == ["b", "b", "a", "a"]


@pytest.mark.parametrize("method", ["beam", "dvts"])
def test_what_is_not_whole_after_the_last_round_is_cut_off(method):
    search = Search(config(method=method, n=2, m=2, max_steps=2))
    search.parents()
    take(search, [solution("a", scores=[1]), solution("b", scores=[2])])
    search.parents()
    take(search, [solution("b", "c", scores=[2, 1]), solution("b", "d", scores=[2, 0], end="stop")])
    assert search.parents() == []
    assert [(s.steps, s.end) for s in search.solutions()] == [(("b", "d"), "stop"), (("b", "c"), "length")]


def test_budget_by_hand():
    """100 tokens, 4 continuations a round. After the first round 60 are left, and the longest had 13: 4 fit. After the
    second 20 are left, and the longest had 13: one fits. Then 8 are left, and none does."""
    search = Search(config(n=4, m=2, budget_tokens=100))
    assert len(search.parents()) == 4
    take(search, [solution(name, scores=[s]) for s, name in enumerate("abcd")], (13, 9, 9, 9))
    assert names(search.parents()) == ["d", "d", "c", "c"]
    take(search, [solution(p, p, scores=[s, s]) for s, p in enumerate("ccdd")], (10, 10, 10, 10))
    assert names(search.parents()) == ["dd"]
    take(search, [solution("d", "d", "e", scores=[3, 3, -1], end="stop")], (12,))
    assert search.parents() == []
    assert search.budget.used == 92
    # the second best was not continued: it is cut off, and the one that ended is the answer
    assert [(s.steps, s.end) for s in search.solutions()] == [(("d", "d", "e"), "stop"), (("d", "d"), "length")]


def test_a_narrow_budget_goes_to_the_first_trees():
    search = Search(config(method="dvts", n=4, m=2, budget_tokens=70))
    search.parents()
    take(search, [solution(name, scores=[s]) for s, name in enumerate("abcd")], (10, 10, 10, 10))
    assert names(search.parents()) == ["b", "b", "d"]


def test_room():
    budget = Budget(None)
    budget.take(10**9)
    assert budget.room(7) == 7
    budget = Budget(50)
    assert budget.room(7) == 7  # nothing is known yet about their length
    budget.take(20)
    assert (budget.room(7), budget.room(1)) == (1, 1)
    budget.take(15)
    assert budget.room(7) == 0
    budget.take(40)
    assert (budget.used, budget.longest, budget.room(7)) == (75, 40, 0)


@pytest.mark.parametrize(
    ("lengths", "requests"),
    [
        ([25] * 4, [1, 1, 2]),  # 100 tokens in four
        ([30] * 4, [1, 1, 1, 1]),  # 90 are too few, 120 are not
        ([10] * 10, [1, 1, 2, 4, 2]),
        ([10, 50, 50], [1, 1, 1]),  # the first is no measure of the others
        ([120], [1]),
    ],
)
def test_samples_have_at_least_as_many_tokens(lengths, requests):
    samples, left, asked = Samples(100), list(lengths), []
    while parents := samples.parents():
        asked.append(len(parents))
        count = len(parents)
        written, left = left[:count], left[count:]
        take(samples, [solution("a", end="stop", tokens=n) for n in written], written)
    assert asked == requests
    assert not left
    assert samples.budget.used >= 100
    assert samples.solutions() == samples.samples
    assert sum(s.tokens for s in samples.samples) == samples.budget.used


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 6, "m": 4}, "n: 6 is not a multiple of m, 4"),
        ({"n": 4, "m": 8}, "n: 4 is not a multiple of m, 8"),
        ({"n": 0}, "n: 0 was given; it must be at least 1"),
        ({"m": 0}, "m: 0 was given"),
        ({"max_steps": 0}, "max_steps: 0 was given"),
        ({"together": 0}, "together: 0 was given"),
        ({"budget_tokens": 15}, "budget_tokens: 15 is too small for n = 16 continuations of a token each"),
    ],
)
def test_options_that_make_no_search(options, said):
    with pytest.raises(PQMError, match=said):
        config(**options)
