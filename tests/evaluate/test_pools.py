"""Pools of candidates from records to figures, against enumeration."""

import json
import math
from itertools import combinations

import numpy as np
import pytest

from pqm_fast.data import read_records
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.evaluate import aggregate, cross_scaled, evaluate_pools, self_consistency, table, weighted_vote
from pqm_fast.evaluate.aggregate import AGGREGATORS
from pqm_fast.evaluate.calibrate import deal


def candidate(question, policy, steps, scores, **extra):
    extra = {"question_id": question, "policy": policy, **extra}
    return Record(f"{question}/{policy}", "Q?", steps, extra=extra), scores


POOL = [
    candidate("q1", "weak", ["a: 1 +1 =2"], [0.1], answer="2"),
    candidate("q1", "weak", ["a: 1 +1 =3"], [0.9], answer="2"),
    candidate("q1", "strong", ["x", "The answer is: 2"], [0.5, 0.95], answer="2"),
    candidate("q2", "weak", ["nothing"], [0.7], answer="#### 4"),
    candidate("q2", "weak", ["it is 4"], [0.2], answer="... so\n#### 4"),
    candidate("q2", "strong", ["it is 5", "cut off"], [0.3, None], answer="4", correct=True),
]


def expected(pools, how, n):
    values = []
    for pool in pools:
        picks = [max(subset)[1] for subset in combinations([(aggregate(s, how), c) for s, c in pool], n)]
        values.append(sum(picks) / len(picks))
    return sum(values) / len(values)


def test_pools_against_enumeration():
    found = evaluate_pools(POOL, how=("min", "last"), ns=(1, 2, 3))
    correct = [1, 0, 1, 0, 1, 1]
    scored = [(scores, hit) for (_, scores), hit in zip(POOL, correct, strict=True)]
    pools = {
        "overall": [scored[:3], scored[3:]],
        "weak": [scored[:2], scored[3:5]],
        "strong": [scored[2:3], scored[5:]],
    }
    for name, sizes in (("overall", (1, 2, 3)), ("weak", (1, 2)), ("strong", (1,))):
        entry = found["overall"] if name == "overall" else found["policies"][name]
        for how in ("min", "last"):
            assert list(entry["best_of_n"][how]) == [str(n) for n in sizes]
            for n in sizes:
                assert entry["best_of_n"][how][str(n)]["mean"] == pytest.approx(expected(pools[name], how, n))
    assert found["overall"]["mean_accuracy"]["mean"] == pytest.approx(2 / 3)
    assert found["overall"]["majority_vote"]["mean"] == 1
    assert found["overall"]["majority_vote"]["ties"] == "share"
    assert found["overall"]["majority_vote"]["votes"] == 5 / 2  # one candidate gives no answer
    assert found["overall"]["pass_at_n"]["2"]["mean"] == pytest.approx(1.0)
    groups, right = [[0, 1, 0], [-1, 0, 1]], [correct[:3], correct[3:]]
    q = [[aggregate(s, "last") for s, _ in own] for own in pools["overall"]]
    weights = [[-np.log1p(np.exp(-x)) for x in own] for own in q]
    for n in (1, 2, 3):
        vote, weighted = self_consistency(groups, right, n), weighted_vote(groups, right, weights, n)
        assert found["overall"]["self_consistency"][str(n)]["mean"] == pytest.approx(vote.mean)
        assert found["overall"]["weighted_vote"]["last"][str(n)]["mean"] == pytest.approx(weighted.mean)
    assert found["policies"]["weak"]["candidates"] == 4
    assert any("without a final answer" in reason for reason in found["left_out"])


def test_weights_of_votes_are_probabilities():
    """Three weak votes against two strong ones: sigmoid(-1) * 3 < sigmoid(2) * 2, and for prod the product itself."""
    pool = [candidate("q1", "p", ["so", f"it is {a}"], q, answer="2") for a, q in ((1, [-1.0, 3.0]), (2, [2.0, 2.5]))]
    votes = evaluate_pools([pool[0]] * 3 + [pool[1]] * 2, ns=(5,))["overall"]
    assert votes["self_consistency"]["5"]["mean"] == 0
    assert {how: own["5"]["mean"] for how, own in votes["weighted_vote"].items()} == {
        "min": 1,
        "last": 0,
        "mean": 0,
        "softmin": 1,
        "prod": 1,
        "max": 0,
    }


def test_probabilities_of_solutions():
    """The scores of prod are logarithms of probabilities, and those of a candidate that was cut off have none."""
    rng = np.random.default_rng(0)
    pool = []
    for i in range(200):
        correct = float(i % 3 > 0)
        q = (rng.normal(correct, 1, 3) * 2 + 1).tolist()
        extra = {"question_id": f"{i // 4}", "correct": correct}
        pool.append((Record(f"{i}", f"Q{i // 4}?", ["s"] * 3, extra=extra), q))
    pool[7] = (pool[7][0], [1.0, None, 2.0])
    found = evaluate_pools(pool)["solution_probabilities"]
    assert list(found) == list(AGGREGATORS)
    kept = [pair for i, pair in enumerate(pool) if i != 7]
    correct = np.array([record.extra["correct"] for record, _ in kept])
    folds = deal([record.prompt for record, _ in kept])
    for how, entry in found.items():
        p = [math.prod(1 / (1 + math.exp(-x)) for x in q) if how == "prod" else None for _, q in kept]
        logit = [math.log(own / (1 - own)) if own else aggregate(q, how) for own, (_, q) in zip(p, kept, strict=True)]
        expected = cross_scaled(np.array(logit), correct, folds)
        for name in ("slope", "offset"):
            assert entry[name] == pytest.approx(expected[name])
        for name in ("before", "after"):
            assert entry[name] == pytest.approx(expected[name])
        assert entry["count"] == 199
    assert found["prod"]["after"]["brier"] < found["prod"]["before"]["brier"]
    text = table(evaluate_pools(pool))
    pairs = [f"{found['max'][when]['ece']:.3f}" for when in ("before", "after")]
    [row] = [line for line in text.splitlines() if line.startswith("  max ")]
    assert " / ".join(pairs) in row
    sure = [(record, [1e4 if record.extra["correct"] else -1e4] * 3) for record, _ in pool]
    assert evaluate_pools(sure)["solution_probabilities"]["prod"]["before"]["brier"] == 0.0
    one = evaluate_pools(pool[:4])
    assert "solution_probabilities" not in one
    assert one["left_out"][-1].startswith("probabilities of solutions: 4 of 5 parts of the questions must hold")


def test_one_candidate_and_no_candidates():
    one = evaluate_pools([candidate("q1", "p", ["it is 2"], [0.5], answer="2")])["overall"]
    for figures in (one["best_of_n"]["min"], one["self_consistency"], one["weighted_vote"]["prod"], one["pass_at_n"]):
        assert figures == {"1": {"mean": 1.0, "low": None, "high": None, "questions": 1, "sampling_error": 0.0}}
    none = evaluate_pools([])
    assert none == {"left_out": ["Best-of-N: no candidate solutions whose correctness is known"]}
    assert table(none).startswith("Left out")


def test_odd_solutions():
    long = candidate("q1", "p", ["1 + 1 = 2. " * 1000] * 3 + ["The answer is: \\\\frac{1}{"], [0.9] * 4, answer="−2")
    minus = candidate("q1", "p", ["it is −2"], [0.1], answer="−2")
    nothing = candidate("q1", "p", ["no idea"], [], answer="−2")
    nothing[0].steps.clear()
    found = evaluate_pools([long, minus, nothing], ns=(1, 3))
    assert found["overall"]["mean_accuracy"]["mean"] == pytest.approx(1 / 3)
    assert found["overall"]["best_of_n"]["min"]["3"]["mean"] == 0
    assert found["overall"]["majority_vote"]["votes"] == 2
    assert any("without a scored step" in reason for reason in found["left_out"])


def test_votes_are_sampled_from_the_seed():
    rng = np.random.default_rng(0)
    pool = [
        candidate(f"q{i}", "p", [f"it is {rng.integers(0, 3)}"], [float(rng.normal())], answer="1")
        for i in range(4)
        for _ in range(24)
    ]
    runs = [evaluate_pools(pool, draws=draws, seed=seed) for draws, seed in ((50, 0), (50, 0), (50, 1), (5000, 0))]
    assert runs[0] == runs[1] != runs[2]
    for figures in (
        lambda run: run["overall"]["self_consistency"]["8"],
        lambda run: run["overall"]["weighted_vote"]["min"]["8"],
    ):
        few, _, _, many = map(figures, runs)
        assert few["sampling_error"] > 3 * many["sampling_error"] > 0
        assert few["mean"] == pytest.approx(many["mean"], abs=5 * few["sampling_error"])
    assert runs[0]["overall"]["best_of_n"] == runs[3]["overall"]["best_of_n"]
    with pytest.raises(PQMError, match="draws=1"):
        evaluate_pools(pool, draws=1)


def test_a_cut_off_candidate_has_no_answer():
    """A number in it may be any, as in annotate."""
    pool = [
        candidate("q1", "m", ["It is 12, and"], [2.0], answer="12", finish_reason="length"),
        candidate("q1", "m", ["It is 13"], [1.0], answer="12", finish_reason="stop"),
        candidate("q1", "m", ["It is 12"], [1.0], answer="12"),
        candidate("q1", "m", ["It is 12, or"], [1.0], answer="12", finish_reason="length", correct=True),
    ]
    found = evaluate_pools(pool)
    assert found["overall"]["mean_accuracy"]["mean"] == 0.5
    assert found["overall"]["majority_vote"]["votes"] == 2
    assert found["left_out"][0].startswith("2 candidates cut off (`finish_reason` length): no answer, no vote")


def test_answers_of_other_kinds_are_wrong_and_have_votes_of_their_own():
    """A point is no list, no set, and no other point, in whatever order they come."""
    texts = [r"\boxed{(3,4)}", r"\boxed{(4,3)}", r"\boxed{3, 4}", r"\boxed{\{3,4\}}", r"\boxed{4}, \boxed{3}"]
    pool = [candidate("q1", "m", [text], [0.0], answer="(3,4)") for text in texts]
    for order in ([0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        found = evaluate_pools([pool[i] for i in order])["overall"]
        assert found["mean_accuracy"]["mean"] == 0.2
        assert found["majority_vote"]["mean"] == 0  # the list has two votes


def test_tiny_numbers_differ():
    texts = [r"\boxed{1.05 \times 10^{-34}}", r"\boxed{6.63e-34}", r"\boxed{-6.63 \times 10^{-34}}"]
    pool = [candidate("q1", "m", [text], [0.0], answer="6.63*10^-34") for text in texts]
    assert evaluate_pools(pool)["overall"]["mean_accuracy"]["mean"] == pytest.approx(1 / 3)


def test_cut_off_candidates_are_said():
    cut = candidate("q1", "p", ["a", "b", "it is 1"], [3.0, None, None], answer="2")
    whole = candidate("q1", "p", ["it is 2"], [-9.0], answer="2")
    none = candidate("q1", "p", ["a", "it is 1"], [None, None], answer="2")
    found = evaluate_pools([cut, whole, none])
    said = "1 candidates have steps without a score (they were cut off): kept, and never preferred"
    assert said in found["left_out"]
    for how, best in found["overall"]["best_of_n"].items():
        assert best["2"]["mean"] == pytest.approx(2 / 3), how  # the whole one, wherever it is there
        assert found["overall"]["weighted_vote"][how]["2"]["mean"] == pytest.approx(2 / 3), how


def test_order_of_candidates_does_not_matter_unless_asked():
    tied = [candidate("q1", "p", [f"it is {n}"], [0.0], answer="2") for n in (1, 2)]
    assert evaluate_pools(tied)["overall"] == evaluate_pools(tied[::-1])["overall"]
    first = [evaluate_pools(pool, ties="first")["overall"]["majority_vote"] for pool in (tied, tied[::-1])]
    assert [(vote["mean"], vote["ties"]) for vote in first] == [(0, "first"), (1, "first")]


def test_order_of_questions_in_the_file_does_not_matter():
    mixed = evaluate_pools([POOL[i] for i in (0, 3, 1, 4, 2, 5)])
    assert mixed["overall"] == evaluate_pools(POOL)["overall"]


def test_uneven_pools_are_said():
    short = [*POOL, candidate("q3", "weak", ["it is 1"], [0.0], answer="1")]
    found = evaluate_pools(short, ns=(1, 2))
    assert found["overall"]["best_of_n"]["min"]["2"]["questions"] == 2
    assert "n=2, all candidates: 1 questions have fewer candidates than that" in found["left_out"]


def test_default_sizes_reach_what_half_of_the_questions_allow():
    pool = [candidate("q1", "p", ["1"], [0.0], answer="1")] * 9 + [candidate("q2", "p", ["1"], [0.0], answer="1")] * 4
    assert list(evaluate_pools(pool)["overall"]["pass_at_n"]) == ["1", "2", "4", "8"]
    pool += [candidate("q3", "p", ["1"], [0.0], answer="1")] * 4
    assert list(evaluate_pools(pool)["overall"]["pass_at_n"]) == ["1", "2", "4"]


def test_records_that_are_no_pool_are_counted():
    plain = (Record("r", "Q?", ["s"], [1.0]), [1.0])
    unknown = candidate("q9", "p", ["it is 1"], [0.0], answer=None)
    found = evaluate_pools([plain, plain, unknown])
    assert "overall" not in found
    assert found["left_out"][0] == "2 records without question_id: not candidates of a pool"
    assert found["left_out"][1].startswith("1 candidates with neither")
    assert "no candidate solutions" in table(found)


def test_scores_must_fit_the_steps():
    with pytest.raises(PQMError, match="record q1/p: 2 scores for 1 steps"):
        evaluate_pools([candidate("q1", "p", ["it is 1"], [0.0, 1.0], answer="1")])
    with pytest.raises(PQMError, match="at least 1, found 0"):
        evaluate_pools(POOL, ns=(0, 1))
    with pytest.raises(PQMError, match=r"temperature: inf was given"):
        evaluate_pools(POOL, temperature=math.inf)


@pytest.mark.parametrize("correct", [7, -0.1, "yes", float("nan")])
def test_correctness_must_be_a_share(correct):
    bad = candidate("q1", "p", ["it is 1"], [0.0], answer="1", correct=correct)
    with pytest.raises(PQMError, match=r"record q1/p: correct is .*; give true, false or a number from 0 to 1"):
        evaluate_pools([*POOL, bad])
    for right, mean in ((1, 1.0), (True, 1.0), (0.25, 0.25), (False, 0.0)):
        good = candidate("q1", "p", ["it is 1"], [0.0], correct=right)
        assert evaluate_pools([good])["overall"]["mean_accuracy"]["mean"] == mean


def test_table_is_aligned_and_survives_json():
    found = json.loads(json.dumps(evaluate_pools(POOL, how=("min", "prod"))))
    text = table(found)
    lines = text.splitlines()
    header = lines[1]
    assert [word in header for word in ("policy", "majority (share)", "votes", "n=1")] == [True] * 4
    row = next(line for line in lines if "all candidates" in line)
    assert row.index("0.667") == header.index("mean")
    picks = [line[header.index("pick") : header.index("n=1")].strip() for line in lines[2:15]]
    assert picks == ["", *["min", "prod", "vote", "vote by min", "vote by prod", "pass@n"] * 2]  # `strong` has one each
    assert {line[: len("  all candidates")].strip() for line in lines[2:15]} == {"strong", "weak", "all candidates", ""}


def test_many_candidates():
    """30 questions, 128 candidates each, every aggregator, with answers to find and compare."""
    rng = np.random.default_rng(0)
    pool = []
    for i in range(30):
        answers = rng.geometric(0.3, 128)
        pool += [
            (
                Record(f"{i}/{k}", "Q?", ["so", f"it is {answers[k]}"], extra={"question_id": f"q{i}", "answer": "1"}),
                rng.normal(answers[k] == 1, 1, 2).tolist(),
            )
            for k in range(128)
        ]
    found = evaluate_pools(pool)
    best = found["overall"]["best_of_n"]
    assert list(best) == list(AGGREGATORS)
    assert list(best["min"]) == ["1", "2", "4", "8", "16", "32", "64", "128"]
    assert best["min"]["1"]["mean"] < best["min"]["128"]["mean"]
    assert 0 < found["overall"]["self_consistency"]["8"]["sampling_error"] < 0.006


def test_gsm8k_pool(shared_data):
    """Facts of the data, through the readers: the policies' accuracies, the vote, and any of four right."""
    records = list(read_records(shared_data("gsm8k_best_of_4.json")))
    scored = [(record, [0.0] * len(record.steps)) for record in records]
    found = evaluate_pools(scored, ("min", "last"), ties="first", draws=20)
    accuracy = {name: own["mean_accuracy"]["mean"] for name, own in found["policies"].items()}
    expected = {"6b_finetuning": 0.217, "6b_verification": 0.390, "175b_finetuning": 0.347, "175b_verification": 0.563}
    assert accuracy == pytest.approx(expected, abs=0.005)
    overall = found["overall"]
    assert overall["majority_vote"]["mean"] == pytest.approx(0.443, abs=0.005)
    assert overall["pass_at_n"]["4"]["mean"] == pytest.approx(0.672, abs=0.005)
    # equal scores pick at random, and weigh alike
    mean = overall["mean_accuracy"]["mean"]
    assert [own["4"]["mean"] for own in overall["best_of_n"].values()] == [pytest.approx(mean)] * 2
    assert overall["weighted_vote"]["min"] == overall["self_consistency"]
