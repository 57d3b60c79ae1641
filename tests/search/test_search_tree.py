"""Which solutions beam search keeps, on trees that are written out by hand."""

import math

import pytest
from searches import solution

from pqm_fast.data.records import EMPTY_STEP
from pqm_fast.search.solution import START
from pqm_fast.search.tree import Tree


def names(solutions):
    return ["".join(s.steps) for s in solutions]


def test_two_rounds_by_hand():
    """N = 4, M = 2, by the lowest step. The best two of each round are continued twice each."""
    tree = Tree(width=4, keep=2, how="min")
    assert tree.parents(4) == [START] * 4
    tree.take(
        [
            solution("a", scores=[1]),
            solution("b", scores=[3]),
            solution("c", scores=[-1]),
            solution("d", scores=[2]),
        ]
    )
    assert names(tree.kept) == ["b", "d"]
    assert names(tree.parents(4)) == ["b", "b", "d", "d"]
    tree.take(
        [
            solution("b", "e", scores=[3, 0.5]),
            solution("b", "f", scores=[3, 4]),  # the lowest is 3
            solution("d", "g", scores=[2, 9]),  # 2
            solution("d", "h", scores=[2, 1], end="stop"),
        ]
    )
    assert names(tree.kept) == ["bf", "dg"]
    assert names(tree.ended) == ["dh"]
    assert names(tree.parents(4)) == ["bf", "bf", "dg", "dg"]


@pytest.mark.parametrize(
    ("how", "kept"), [("min", "abc"), ("last", "bca"), ("mean", "cba"), ("prod", "abc"), ("softmin", "abc")]
)
def test_what_they_are_chosen_by(how, kept):
    """min: 1, 0, -1. last: 1, 3, 2. mean: 1, 1.5, 4."""
    solutions = {
        "a": solution("a", "a", scores=[1, 1]),
        "b": solution("b", "b", scores=[0, 3]),
        "c": solution("c", "c", "c", scores=[-1, 11, 2]),
    }
    for first in (list(solutions), list(reversed(solutions))):
        tree = Tree(3, 3, how)
        tree.parents(3)
        tree.take([solutions[name] for name in first])
        assert [s.steps[0] for s in tree.kept] == list(kept)


def test_a_whole_solution_keeps_its_place_while_it_is_among_the_best():
    tree = Tree(width=4, keep=2, how="min")
    tree.parents(4)
    tree.take([solution("a", scores=[1], end="stop"), solution("b", scores=[5]), *[solution("c", scores=[0])] * 2])
    assert names(tree.kept) == ["b", "a"]
    assert names(tree.parents(4)) == ["b"] * 4  # a is whole: all continuations are for b
    tree.take([solution("b", str(i), scores=[5, s]) for i, s in enumerate((0.5, 0.9, 2, 0.1))])
    assert names(tree.kept) == ["b2", "a"]
    tree.parents(4)
    tree.take([solution("b", "2", str(i), scores=[5, 2, s]) for i, s in enumerate((1.5, 1.2, 0, 0))])
    assert names(tree.kept) == ["b20", "b21"]  # a, with 1, is no longer among the best two
    assert names(tree.ended) == ["a"]  # but it stays in the pool


def test_the_search_ends_when_the_best_are_whole():
    """Though a partial solution is left: by `min` it can only become worse."""
    tree = Tree(width=2, keep=1, how="min")
    tree.parents(2)
    tree.take([solution("a", scores=[2], end="stop"), solution("b", scores=[1])])
    assert tree.parents(2) == []


def test_continuations_are_spread_evenly_the_best_first():
    tree = Tree(width=8, keep=3, how="min")
    tree.parents(8)
    tree.take([solution(name, scores=[s]) for name, s in zip("abcde", (1, 2, 3, 0, -1), strict=True)])
    assert names(tree.parents(8)) == list("cccbbbaa")
    assert names(tree.parents(4)) == list("ccba")
    assert names(tree.parents(2)) == list("cb")
    tree.take([solution("c", "x", scores=[3, 0]), solution("b", "x", scores=[2, 0.5])])
    assert names(tree.kept) == ["a", "bx", "cx"]  # a was not continued, and is kept as it was
    assert tree.parents(0) == []
    tree.take([])
    assert names(tree.kept) == ["a", "bx", "cx"]


def test_equal_scores_keep_the_order_in_which_they_were_written():
    tree = Tree(width=4, keep=2, how="min")
    tree.parents(4)
    tree.take([solution(name, scores=[1]) for name in "dbca"])
    assert names(tree.kept) == ["d", "b"]


def test_distinct_keeps_one_of_equals():
    children = [solution("a", scores=[3]), solution(" a\n", scores=[3]), solution("b", scores=[1])]
    children += [solution("c", scores=[2], end="stop"), solution("c", scores=[2], end="stop")]
    children += [solution("c", scores=[2])]  # not whole: another solution
    for distinct, kept in ((False, "aacc"), (True, "accb")):
        tree = Tree(width=8, keep=4, how="min", distinct=distinct)
        tree.parents(8)
        tree.take(children)
        assert names(tree.kept) == list(kept)
        assert names(tree.ended) == ["c", "c"]  # both are solutions: each has a vote


def test_what_was_cut_off_or_has_no_score_is_never_preferred():
    assert solution("a", scores=[9], end="length").value("min") == -math.inf
    assert solution("a", "b", scores=[9, None]).value("last") == -math.inf
    tree = Tree(width=3, keep=1, how="min")
    tree.parents(3)
    tree.take([solution("a", scores=[9], end="length"), solution("b", scores=[None]), solution("c", scores=[-1e4])])
    assert names(tree.kept) == ["c"]
    assert names(tree.ended) == ["a"]


def test_steps_are_the_pieces_without_blanks():
    assert solution("", " a ", "\t", "b\n").steps == ("a", "b")
    assert solution("", " ").steps == solution().steps == (EMPTY_STEP,)
