"""Rounds of several questions with a stand-in policy and model: what is asked, what is scored, what goes wrong."""

from dataclasses import replace

import pytest
from searches import Memory, ScriptedPolicy, TableScorer, config, question, rounds

from pqm_fast.data.records import EMPTY_STEP
from pqm_fast.errors import PQMError, RecordError
from pqm_fast.sample.policy import Completion, request_seed
from pqm_fast.search import rounds as rounds_module
from pqm_fast.search.methods import Samples, Search


def searched(options, policy, scorer, texts=("Q",), store=None):
    """The searches of questions after their last round, and the questions that were refused."""
    searches = [Search(options) for _ in texts]
    found = rounds(options, policy, scorer, store).run(
        "search", [(q, question(text), search) for q, (text, search) in enumerate(zip(texts, searches, strict=True))]
    )
    return searches, found


def steps(search):
    return sorted((s.steps, s.end, s.scores, s.tokens) for s in search.solutions())


def by_hand(request, i):
    """A tree of two steps: first A, B, C, D in turn; after each, two last steps, X and Y."""
    assert request.one_step
    if not request.steps:
        return Completion("ABCD"[i % 4], True, 3, goes_on=True)
    return Completion("XY"[i % 2] + request.steps[-1], True, 5, goes_on=False)


SCORES = {"A": 1.0, "B": 4.0, "C": -2.0, "D": 3.0, "XB": 2.0, "YB": 5.0, "XD": 0.5, "YD": -7.0}
WHOLE = {"XB": 2.0, "YB": 4.0, "XD": 0.5, "YD": -7.0}  # the lowest of both steps


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_beams_by_hand(batch):
    """The best two first steps are B and D; their four ends are the solutions. Whatever answers first."""
    policy, scorer = ScriptedPolicy(by_hand, batch), TableScorer(SCORES)
    [search], refused = searched(config(n=4, beam_width=2), policy, scorer)
    assert refused == {}
    assert {s.steps for s in search.solutions()} == {(x[-1], x) for x in WHOLE}
    assert {s.steps[-1]: s.value("min") for s in search.solutions()} == WHOLE
    assert {s.tokens for s in search.solutions()} == {8}
    assert search.written == 4 * 3 + 4 * 5
    assert [len(call) for call in scorer.calls] == [4, 4]


def test_many_questions_are_one_batch_in_every_round():
    policy, scorer = ScriptedPolicy(by_hand), TableScorer(SCORES)
    searches, _ = searched(config(n=4, beam_width=2), policy, scorer, texts=("P", "Q", "R"))
    assert [len(call) for call in scorer.calls] == [12, 12]
    assert [text for text, _ in scorer.calls[0]] == ["P"] * 4 + ["Q"] * 4 + ["R"] * 4
    assert len({request.seed for request in policy.seen}) == 24
    for search in searches:
        assert {s.steps[-1] for s in search.solutions()} == set(WHOLE)


def test_questions_end_in_rounds_of_their_own():
    """The second question has one step less than the first."""

    def write(request, i):
        last = len(request.steps) == (1 if request.question == "P" else 0)
        return Completion(f"s{i}", True, 1, goes_on=not last)

    scorer = TableScorer({})
    (p, q), _ = searched(config(n=2, beam_width=2), ScriptedPolicy(write), scorer, texts=("P", "Q"))
    assert [{text for text, _ in call} for call in scorer.calls] == [{"P", "Q"}, {"P"}]
    assert [len(s.steps) for s in p.solutions()] == [2, 2]
    assert [len(s.steps) for s in q.solutions()] == [1, 1]


def test_equal_solutions_are_scored_once():
    scorer = TableScorer({"A": 2.0})
    [search], _ = searched(config(n=6, beam_width=3), ScriptedPolicy(lambda r, i: Completion("A", True, 1)), scorer)
    assert scorer.calls == [[("Q", ("A",))]]
    assert [s.scores for s in search.solutions()] == [(2.0,)] * 6


def test_blank_pieces_are_passed_over_and_stay_in_the_prompt():
    """The policy begins with two blank lines and puts white space around steps: it goes on from exactly that text."""

    def write(request, i):
        pieces = request.steps
        text = ("", " ", " one ", "", "two\t")[len(pieces)]
        return Completion(text, True, 2, goes_on=len(pieces) < 4)

    policy, scorer = ScriptedPolicy(write), TableScorer({"one": 1.0, "two": 2.0})
    [search], _ = searched(config(n=2, beam_width=2), policy, scorer)
    assert [request.steps for request in policy.seen if request.steps][-1] == ("", " ", " one ", "")
    assert [len(call) for call in scorer.calls] == [1, 1]  # two rounds, of equal solutions
    assert steps(search) == [(("one", "two"), "stop", (1.0, 2.0), 10)] * 2
    # two continuations of three pieces, the best of which had two of two pieces, of two tokens each
    assert search.written == 2 * 3 * 2 + 2 * 2 * 2


def test_endless_blanks_are_cut_off():
    policy = ScriptedPolicy(lambda request, i: Completion("", True, 1, goes_on=True))
    [search], _ = searched(config(n=2, beam_width=2), policy, TableScorer({}))
    cut = (EMPTY_STEP,), "length", (None,), rounds_module.MOST_BLANKS + 1
    assert steps(search) == [cut] * 2
    assert len(policy.seen) == 2 * (rounds_module.MOST_BLANKS + 1)


@pytest.mark.parametrize(
    ("completion", "end"),
    [
        (Completion("half of", False, 9), "length"),
        (Completion("", True, 1), "stop"),
        (Completion("", False, 9), "length"),
    ],
)
def test_a_step_that_ends_otherwise(completion, end):
    """Cut off at the token limit, or an end without a step."""

    def write(request, i):
        return completion if request.steps else Completion("A", True, 2, goes_on=True)

    [search], _ = searched(config(n=2, beam_width=2), ScriptedPolicy(write), TableScorer({}))
    expected = ("A", completion.text) if completion.text else ("A",)
    assert [(s.steps, s.end) for s in search.solutions()] == [(expected, end)] * 2
    assert search.solutions()[0].tokens == 2 + completion.tokens


def test_an_end_at_once_is_one_failed_step():
    """Whatever the model thinks of the words for it: it has no score, and is never preferred."""
    scorer = TableScorer({EMPTY_STEP: 9.0})
    [search], _ = searched(config(n=2, beam_width=2), ScriptedPolicy(lambda r, i: Completion("", True, 0)), scorer)
    assert steps(search) == [((EMPTY_STEP,), "stop", (None,), 1)] * 2  # the end is a token at least
    assert scorer.calls == [[("Q", ("1",))]]  # only whether the question can be read
    half = ScriptedPolicy(lambda r, i: Completion("A" if i else "", True, 1))
    [search], _ = searched(config(n=2, beam_width=2), half, TableScorer({"A": -5.0, EMPTY_STEP: 9.0}))
    assert [s.steps for s in search.trees[0].kept] == [("A",)]


def test_a_solution_that_fills_the_context_is_kept_and_never_preferred():
    """The policy refuses to continue A, which has the best score, in the second round."""

    def write(request, i):
        if not request.steps:
            return Completion("AB"[i], True, 2, goes_on=True)
        return RecordError("too long", "too long") if request.steps == ("A",) else Completion("end", True, 2)

    [search], refused = searched(config(n=2, beam_width=1), ScriptedPolicy(write), TableScorer({"A": 9.0}))
    assert refused == {}
    assert [(s.steps, s.end) for s in search.solutions()] == [(("A",), "length"), (("B", "end"), "stop")]
    assert search.trees[0].kept[0].steps == ("B", "end")
    assert search.written == 6


def test_a_question_that_the_policy_refuses():
    def write(request, i):
        return RecordError("too long", "too long") if request.question == "Q" else by_hand(request, i)

    with pytest.raises(PQMError, match="question id of Q: too long; --skip-refused leaves such questions out"):
        searched(config(n=4, beam_width=2), ScriptedPolicy(write), TableScorer(SCORES), texts=("P", "Q"))
    scorer = TableScorer(SCORES)
    options = config(n=4, beam_width=2, skip_refused=True)
    (p, q), refused = searched(options, ScriptedPolicy(write), scorer, texts=("P", "Q"))
    assert refused == {1: "question id of Q: too long"}
    assert {s.steps[-1] for s in p.solutions()} == set(WHOLE)
    assert q.solutions() == []
    assert all(text == "P" for call in scorer.calls for text, _ in call)


def test_a_step_that_the_model_cannot_read_has_no_score():
    """It holds the step token. The other solutions of the round are scored."""
    scorer = TableScorer(SCORES, bad="D")
    [search], _ = searched(config(n=4, beam_width=2), ScriptedPolicy(by_hand), scorer)
    # the best two are B, then A instead of D
    assert {s.steps for s in search.solutions()} == {("B", "XB"), ("B", "YB"), ("A", "XA"), ("A", "YA")}
    scorer = TableScorer(SCORES, bad="B")
    [search], _ = searched(config(n=4, beam_width=4), ScriptedPolicy(by_hand), scorer)
    assert {s.steps[0] for s in search.solutions()} == {"D"}


def test_a_question_that_the_model_cannot_read():
    """It holds the step token, so that no step of it has a score: the policy would go on without a guide."""

    class Scorer(TableScorer):
        def score(self, solutions, *, lenient):
            scores = super().score(solutions, lenient=lenient)
            return [[None] * len(s) if text == "Q" else s for s, (text, _) in zip(scores, solutions, strict=True)]

    for budget in (None, 50):
        options = config(n=4, beam_width=2, budget_tokens=budget, skip_refused=True)
        policy = ScriptedPolicy(lambda r, i: Completion("1", True, 3, goes_on=r.one_step and not r.steps))
        with pytest.raises(PQMError, match=r"question id of Q: the model cannot read it.*--skip-refused leaves"):
            searched(replace(options, skip_refused=False), policy, Scorer({}), texts=("P", "Q"))
        (p, _), refused = searched(options, policy, scorer := Scorer({}), texts=("P", "Q"))
        assert [*refused] == [1]
        assert {s.end for s in p.solutions()} == {"stop"}
        assert [("Q", ("1",))] in scorer.calls
        assert all(text == "P" for call in scorer.calls[2:] for text, _ in call)


def test_a_refused_question_is_not_asked_for_again():
    policy = ScriptedPolicy(lambda r, i: RecordError("no", "no"), batch=3)
    searched(config(n=8, skip_refused=True), policy, TableScorer({}))
    assert len(policy.seen) == 3  # those that were under way


def test_a_server_that_does_not_count_tokens():
    with pytest.raises(PQMError, match=r"stand-in: its server does not say how many tokens it wrote \(usage"):
        searched(config(), ScriptedPolicy(lambda r, i: Completion("a", True)), TableScorer({}))


def test_what_is_stored_is_not_asked_for_again():
    """Completions and scores of an earlier run: neither policy nor model is needed, and the result is the same."""
    store, options = Memory(), config(n=4, beam_width=2)
    [first], _ = searched(options, ScriptedPolicy(by_hand), TableScorer(SCORES), store=store)
    policy, scorer = ScriptedPolicy(None), TableScorer({})
    [again], _ = searched(options, policy, scorer, store=store)
    assert (policy.seen, scorer.calls) == ([], [])
    assert again.solutions() == first.solutions()
    assert again.written == first.written
    # half of the second round is lost, and its scores
    lost = {key: store.completions.pop(key) for key in sorted(store.completions) if key.round == 1 and key.number % 2}
    del store.rounds[0, "search", 1]
    by_seed = {request_seed(0, "stand-in", "Q", *key[1:]): completion for key, completion in lost.items()}
    policy, scorer = ScriptedPolicy(lambda request, i: by_seed[request.seed]), TableScorer(SCORES)
    [again], _ = searched(options, policy, scorer, store=store)
    assert len(policy.seen) == 2
    assert [len(call) for call in scorer.calls] == [4]
    assert {s.steps[-1]: s.value("min") for s in again.solutions()} == WHOLE


def test_samples_are_whole_solutions_with_seeds_of_their_own():
    policy = ScriptedPolicy(lambda request, i: Completion("one\n\ntwo", i % 2 == 0, 10))
    samples, options = Samples(40), config(seed=3)
    rounds(options, policy, TableScorer({"one": 1.0})).run("samples", [(0, question(), samples)])
    assert [request.one_step for request in policy.seen] == [False] * 4
    assert {request.seed for request in policy.seen} == {request_seed(3, "stand-in", "Q", s) for s in range(4)}
    assert {(s.steps, s.scores, s.tokens) for s in samples.solutions()} == {(("one", "two"), (1.0, 0.0), 10)}
    assert sorted(s.end for s in samples.solutions()) == ["length", "length", "stop", "stop"]
