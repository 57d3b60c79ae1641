import json
from itertools import combinations

import pytest

from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.evaluate import aggregate, evaluate_pools, evaluate_steps, table


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
    assert found["policies"]["weak"]["candidates"] == 4
    assert any("without a final answer" in reason for reason in found["left_out"])


def test_cut_off_candidates_are_said():
    cut = candidate("q1", "p", ["a", "b", "it is 1"], [3.0, None, None], answer="2")
    whole = candidate("q1", "p", ["it is 2"], [2.0], answer="2")
    found = evaluate_pools([cut, whole], how=("min", "last"))
    assert found["left_out"][0].startswith("1 candidates have steps without a score (they were cut off): scored by")
    best = found["overall"]["best_of_n"]
    assert (best["min"]["2"]["mean"], best["last"]["2"]["mean"]) == (0, 1)


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


def test_steps_with_processbench_figures():
    pairs = [
        (Record("a", "Q?", ["s"] * 3, [1.0, 0.0, None]), [1.0, -1.0, -1.0]),
        (Record("b", "Q?", ["s"] * 2, [1.0, 1.0]), [1.0, 1.0]),
        (Record("c", "Q?", ["s"] * 2, [0.0, 0.0]), [1.0, -1.0]),
        (Record("d", "Q?", ["s"]), [1.0]),
    ]
    found = evaluate_steps(pairs)
    assert found["steps"]["steps"] == 6
    assert found["processbench"]["accuracy_on_erroneous"] == 0.5
    assert found["processbench"]["f1"] == pytest.approx(2 / 3)
    assert found["left_out"] == ["1 of 4 records have no labels"]


@pytest.mark.parametrize("labels", [[1.0, 0.0, 1.0], [1.0, None, 0.0], [None, 1.0, 1.0]])
def test_labels_that_name_no_first_error(labels):
    found = evaluate_steps([(Record("a", "Q?", ["s"] * 3, labels), [1.0, None, 1.0])])
    assert "processbench" not in found
    assert "do not name a first error" in found["left_out"][0]


def test_cut_off_steps_are_said():
    found = evaluate_steps([(Record("a", "Q?", ["s"] * 2, [1.0, 0.0]), [1.0, None])])
    assert found["left_out"] == ["1 labelled steps have no score (they were cut off)"]


def test_nothing_labelled():
    found = evaluate_steps([(Record("a", "Q?", ["s"]), [1.0])])
    assert found == {"left_out": ["1 of 1 records have no labels"]}


def test_scores_must_fit_the_steps():
    for evaluate in (evaluate_steps, evaluate_pools):
        with pytest.raises(PQMError, match="record q1/p: 2 scores for 1 steps"):
            evaluate([candidate("q1", "p", ["it is 1"], [0.0, 1.0], answer="1")])
    with pytest.raises(PQMError, match="at least 1, found 0"):
        evaluate_pools(POOL, ns=(0, 1))


def test_table_is_aligned_and_survives_json():
    found = json.loads(json.dumps(evaluate_pools(POOL, how=("min", "prod"))))
    text = table(found)
    lines = text.splitlines()
    header = lines[1]
    assert [word in header for word in ("policy", "majority (share)", "votes", "n=1")] == [True] * 4
    row = next(line for line in lines if "all candidates" in line)
    assert row.index("0.667") == header.index("mean")
    assert {line[: len("  all candidates")].strip() for line in lines[2:11]} == {
        "strong",
        "weak",
        "all candidates",
        "",
    }
    steps = table(evaluate_steps([(Record("a", "Q?", ["s"] * 2, [1.0, 0.0]), [1.0, -1.0])]))
    assert "step accuracy" in steps
    assert "ProcessBench" in steps
