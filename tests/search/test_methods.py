"""Beam search, DVTS and plain samples of one question: what they ask for, how they count, when they end."""

import pytest
from searches import config, solution

from pqm_fast.errors import PQMError
from pqm_fast.search.methods import Samples, Search


def names(solutions):
    return ["".join(piece for piece in s.pieces) for s in solutions]


def take(search, children, tokens=()):
    search.written += sum(tokens)
    search.take(children)


def test_trees_of_dvts_do_not_compete():
    """N = 4, M = 2: two trees. Each continues the better of its two, although those of the second are all worse."""
    search = Search(config(method="dvts", n=4, beam_width=2))
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
    search = Search(config(method="beam", n=4, beam_width=2))
    search.parents()
    take(search, [solution(name, scores=[s]) for name, s in (("a", 8), ("b", 9), ("c", -3), ("d", -4))])
    assert names(search.parents()) == ["b", "b", "a", "a"]


@pytest.mark.parametrize(
    ("method", "options", "kept"),
    [
        ("beam", {}, "aaaa"),
        ("beam", {"distinct": True}, "aabb"),
        ("beam", {"aggregate": "last"}, "bbcc"),
        ("beam", {"aggregate": "mean"}, "bbaa"),
        ("dvts", {}, "aaaa"),
        ("dvts", {"aggregate": "last"}, "bbcc"),
    ],
)
def test_options_reach_the_trees(method, options, kept):
    search = Search(config(method=method, n=4, beam_width=2, **options))
    search.parents()
    scores = (("a", [5, 5]), ("b", [3, 9]), ("c", [1, 7]), ("a", [5, 5]))
    take(search, [solution(name, scores=s) for name, s in scores])
    assert names(search.parents()) == list(kept)


@pytest.mark.parametrize("method", ["beam", "dvts"])
def test_the_last_round_writes_to_the_end(method):
    search = Search(config(method=method, n=2, beam_width=2, max_steps=2))
    assert (names(search.parents()), search.by_step) == (["", ""], True)
    take(search, [solution("a", scores=[1]), solution("b", scores=[2])])
    assert (names(search.parents()), search.by_step) == (["b", "b"], False)
    take(
        search, [solution("b", "c", scores=[2, 1], end="length"), solution("b", "d", "e", scores=[2, 0, 0], end="stop")]
    )
    assert search.parents() == []
    assert [(s.steps, s.end) for s in search.solutions()] == [(("b", "c"), "length"), (("b", "d", "e"), "stop")]


def test_one_round_is_best_of_n():
    search = Search(config(n=4, beam_width=2, max_steps=1))
    assert (names(search.parents()), search.by_step) == ([""] * 4, False)


def test_budget_by_hand():
    """100 tokens, 4 continuations a round. The first solution has 20, so of as long ones 80 // 20 = 4 fit.

    The four first steps have 12, 9, 9 and 9, so 41 are left. A solution of 20 has 11 more than the shortest that is
    kept, and the longest step had 12: 3 fit. They have 10 each, so 11 are left. The longest step does not fit: the best
    solution alone is written to its end.
    """
    search = Search(config(n=4, beam_width=2, budget_tokens=100))
    assert (names(search.parents()), search.by_step) == ([""], False)
    take(search, [solution("w", scores=[-9], end="stop", tokens=20)], [20])
    assert (names(search.parents()), search.by_step) == ([""] * 4, True)
    first = [(name, s, n) for (s, name), n in zip(enumerate("abcd"), (12, 9, 9, 9), strict=True)]
    take(search, [solution(name, scores=[s], tokens=n) for name, s, n in first], [12, 9, 9, 9])
    assert (names(search.parents()), search.by_step) == (["d", "d", "c"], True)
    take(search, [solution(p, p, scores=[s, s], tokens=19) for s, p in enumerate("ddc")], [10] * 3)
    assert search.written == 89
    assert (names(search.parents()), search.by_step) == (["cc"], False)
    take(search, [solution("c", "c", "e", "f", scores=[2, 2, -1, 0], end="stop", tokens=34)], [15])
    assert search.parents() == []
    assert search.written == 104  # by what the end of one solution took
    # the second best was not continued: it is cut off
    ends = [(("w",), "stop"), (("c", "c", "e", "f"), "stop"), (("d", "d"), "length")]
    assert [(s.steps, s.end) for s in search.solutions()] == ends


def test_a_budget_for_less_than_two_solutions():
    search = Search(config(n=4, beam_width=2, budget_tokens=8))
    search.parents()
    take(search, [solution("w", scores=[1], end="stop", tokens=25)], [25])
    assert (names(search.parents()), search.by_step) == ([""], False)
    take(search, [solution("v", scores=[2], end="stop", tokens=30)], [30])
    assert search.parents() == []
    assert names(search.solutions()) == ["w", "v"]


def test_a_narrow_budget_is_dealt_to_the_trees_in_turn():
    """Two trees of two. After the first solution 20 tokens are left, for two of 10: one of each tree. Then 10 are left,
    and two need 5 more each. Then 4, and none fits: the tree with the better solution has the last completion."""
    search = Search(config(method="dvts", n=4, beam_width=2, budget_tokens=30))
    search.parents()
    take(search, [solution("w", scores=[0], end="stop", tokens=10)], [10])
    assert (len(search.parents()), search.shares) == (2, [1, 1])
    take(search, [solution(name, scores=[s], tokens=5) for s, name in enumerate("ab")], [5] * 2)
    assert (names(search.parents()), search.shares) == (["a", "b"], [1, 1])
    take(search, [solution(p, p, scores=[s, s], tokens=8) for s, p in enumerate("ab")], [3] * 2)
    assert (names(search.parents()), search.shares, search.by_step) == (["bb"], [0, 1], False)


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
    assert samples.written >= 100
    assert samples.solutions() == samples.samples
    assert sum(s.tokens for s in samples.samples) == samples.written


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 6, "beam_width": 4}, "n: 6 is not a multiple of beam_width, 4"),
        ({"n": 4, "beam_width": 8}, "n: 4 is not a multiple of beam_width, 8"),
        ({"n": 0}, "n: 0 was given; it must be at least 1"),
        ({"beam_width": 0}, "beam_width: 0 was given"),
        ({"max_steps": 0}, "max_steps: 0 was given"),
        ({"together": 0}, "together: 0 was given"),
        ({"distinct": True, "method": "dvts"}, "distinct: is for --method beam"),
        ({"budget_tokens": 0}, "budget_tokens: 0 was given; it must be at least 1"),
    ],
)
def test_options_that_make_no_search(options, said):
    with pytest.raises(PQMError, match=said):
        config(**options)
