"""Each format: small records written by hand, with the exact `Record`s expected; then every fault."""

import copy
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from valid_records import (
    MATH_APS,
    OPENR,
    OPENRLHF,
    POOL,
    PRM800K,
    PRMBENCH,
    PROCESSBENCH,
    REASONEVAL,
    RLHFLOW,
    SEARCH_AND_LEARN,
    SHEPHERD,
    TRL,
    VALID,
    VERSAPRM,
    completion,
)

from pqm_fast.data.checks import FormatError, explicit_id
from pqm_fast.data.formats import FORMATS, FormatName, ReadOptions, recognise
from pqm_fast.data.records import EMPTY_STEP, Record
from pqm_fast.errors import PQMError


def parse(raw, **options):
    return FORMATS[recognise(raw)].parse(raw, "R", ReadOptions(**options))


def edited(raw, **changes):
    """A copy of `raw` with fields set, or removed where the value is `...`."""
    raw = {**copy.deepcopy(raw), **changes}
    return {key: value for key, value in raw.items() if value is not ...}


def fault(raw, **options):
    with pytest.raises(FormatError) as caught:
        parse(raw, **options)
    assert "; " in str(caught.value), "a message says what was found; what to do"
    return f"{caught.value.kind}: {caught.value}"


def test_every_format_is_recognised_and_nameable():
    assert {name: recognise(raw) for name, raw in VALID.items()} == {name: name for name in VALID}
    assert set(get_args(FormatName)) == {"auto", *FORMATS}


def test_trl():
    assert parse(TRL) == [Record("R", "1+1?", ["a", "b"], [1.0, 0.25])]
    assert all(type(label) is float for label in parse(edited(TRL, labels=[1, False]))[0].labels)
    assert parse(edited(TRL, labels=...)) == [Record("R", "1+1?", ["a", "b"])]
    assert parse(edited(TRL, labels=None))[0].labels is None
    assert parse(edited(TRL, labels=[None, 0]))[0].labels == [None, 0.0]
    assert parse(edited(TRL, labels=[None, None]))[0].labels is None
    scored = edited(TRL, id="x", scores=[0.5, -1.0], error_type=None)
    assert parse(scored)[0].extra == {"scores": [0.5, -1.0], "error_type": None}


def test_text_is_kept_as_it_is_in_trl_records():
    raw = edited(TRL, prompt=" q\u2028\n", completions=["  a\n", "\u2029b"])
    assert parse(raw)[0] == Record("R", " q\u2028\n", ["  a\n", "\u2029b"], [1.0, 0.25])


def test_math_shepherd():
    steps = ["Step 1: two", "Step 2: three\nmore"]
    assert parse(SHEPHERD) == [Record("R", "How many?", steps, [1.0, 0.0], {"task": "GSM8K"})]
    lower = {key: value.replace("Step 1", "step 1") for key, value in SHEPHERD.items()}
    assert parse(lower)[0].prompt == "How many?"


def test_openrlhf():
    steps = ["Step 1: two", "Step 2: three\nmore"]
    assert parse(OPENRLHF) == [Record("R", "How many?", steps, [1.0, 0.0])]
    assert parse(edited(OPENRLHF, value=[0.5, True]))[0].labels == [0.5, 1.0]
    # the copy of Math-Shepherd that OpenRLHF uses has both
    both = {**SHEPHERD, "value": ["-", "+"]}
    assert parse(both)[0].labels == [0.0, 1.0]
    marked = {"input": "Q Step 1: a<s>Step 2: b <s>", "value": ["+", "+"]}
    assert parse(marked, step_marker="<s>")[0].steps == ["Step 1: a", "Step 2: b"]


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("Step 1: pour 2. Step 2: wait. How long? Step 1: 3 ки", "Step 1: pour 2. Step 2: wait. How long?"),
        ("In Substep 1: two. How many? step 1: 3 ки", "In Substep 1: two. How many?"),
        # after the first marker it belongs to the solution
        ("How long? Step 1: 3 ки\nBy Step 1: 4 ки", "How long?"),
        ("How long? ## Step 1: 3 ки", "How long?"),
        # within a sentence it is spoken of
        ("How long? Step 1: 3, as in step 1: above ки", "How long?"),
        ("Why (in full.) **Step 1: as step 1: says ки", "Why (in full.)"),
        ("How long\n Step 1: by step 1: of it ки", "How long"),
        ("Step 1: pour 2, then step 1: 3 ки", "Step 1: pour 2, then"),
    ],
)
def test_the_question_may_have_steps_of_its_own(text, prompt):
    values = ["+"] * text.count("ки")
    assert parse({"input": text, "value": values})[0].prompt == prompt
    record = parse({"input": text, "label": text.replace("ки", "-")})[0]
    assert (record.prompt, record.labels) == (prompt, [0.0] * len(values))


@pytest.mark.parametrize(
    "text", ["#" * 10**5, "# " * 10**5, "#" + " " * 10**5, "**" * 10**5, "step 1" * 10**4, "'\\" * 10**5]
)
def test_long_hostile_texts_take_no_longer_than_others(text):
    """A search in quadratic time would take minutes here."""
    assert "no first step" in fault({"input": text, "value": ["+"]})
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": "+"}]
    assert "no first step" in fault({"conversations": turns})
    blank = text.replace("#", "\n").replace("*", "\n \r")
    if not blank.strip():
        turns[0]["content"] = f"a{blank}."
        assert parse({"conversations": turns})[0].steps == ["."]
    assert "not a list" in fault(edited(VERSAPRM, chain_of_thoughts=text.replace("#", "[").replace("*", "'")))


def test_line_breaks_as_markers():
    raw = {"question": "Q", "process": "a\nb\n\n\n\nc\n\n", "labels": ["+", "-"]}
    assert parse(raw, step_marker="\n\n")[0].steps == ["a\nb", "c"]
    assert parse(edited(raw, labels=[1, 0, 1]), step_marker="\n")[0].steps == ["a", "b", "c"]
    shepherd = {"input": "Two\n\nlines? Step 1: a\n\nStep 2: b", "value": ["+", "-"]}
    assert parse(shepherd, step_marker="\n\n")[0] == Record(
        "R", "Two\n\nlines?", ["Step 1: a", "Step 2: b"], [1.0, 0.0]
    )
    twice = edited(shepherd, input="By Step 1: of it? Step 1: a\n\nStep 2: b")
    assert "no first step: input holds" in fault(twice, step_marker="\n\n")


@pytest.mark.parametrize("marker", ["ки", "\n\n"])
def test_math_aps_with_one_label_for_a_prefix(marker):
    raw = {"question": "Q", "process": "a\n\nb.", "label": ["-"]}
    assert parse(raw, step_marker=marker) == [Record("R", "Q", ["a\n\nb."], [0.0])]


def test_math_aps_trees():
    extra = {"answer": "10"}
    assert parse(MATH_APS) == [
        Record("q9/1", "Sum 1 to 4.", ["1+4 is 5.", "Twice 5 is 10."], [0.875, 1.0], extra),
        Record("q9/2", "Sum 1 to 4.", ["1+4 is 5.", "So 5\n\nis it."], [None, 0.0], extra),
        Record("q9/3", "Sum 1 to 4.", ["1+4 is 55"], [0.25], extra),
    ]
    twice = [*MATH_APS["reasoning_steps"][:2], {"solution_prefix": "Sum 1 to 4. 1+4 is 5.", "mc_value": None}]
    assert [r.labels for r in parse(edited(MATH_APS, reasoning_steps=twice))] == [[0.875]]
    with_mean = [*twice, {"solution_prefix": "Sum\n1 to 4 .\n1+4 is 5.", "mc_value": 0.125}]
    assert [r.labels for r in parse(edited(MATH_APS, reasoning_steps=with_mean))] == [[0.5]]
    # a prefix may end within a line
    siblings = [{"solution_prefix": f"Sum 1 to 4.\n\nx = {x}", "mc_value": 1} for x in ("2", "2 + 3", "2 \n\nA: 2")]
    assert [r.steps for r in parse(edited(MATH_APS, reasoning_steps=siblings))] == [["x = 2 + 3"], ["x = 2", "A: 2"]]


def test_rlhflow():
    assert parse(RLHFLOW) == [
        Record("R", "Read step 1: of it. How many?", ["Step 1: two", "Step 2: three"], [1.0, 0.0])
    ]
    open_end = RLHFLOW["conversations"][:3]
    assert parse({"conversations": open_end})[0].labels == [1.0, None]
    for first in ("Why?\n\na\nb", "Why?\na"):
        turns = [{"role": "user", "content": first}, {"role": "assistant", "content": " - "}]
        assert parse({"conversations": turns}) == [Record("R", "Why?", [first[4:].strip()], [0.0])]


def test_search_and_learn():
    shared = {"answer": "42", "pred": "42", "question_id": "t/1.json"}
    assert parse(SEARCH_AND_LEARN) == [
        Record(
            "t/1.json/1", "6x7?", ["six\nsevens", "A: 42"], None, {**shared, "scores": [0.5, 0.75], "agg_scores": 0.25}
        ),
        Record("t/1.json/2", "6x7?", ["A: 41"], None, {**shared, "scores": [0.125], "agg_scores": 0.125}),
    ]
    # scored at every line
    by_line = edited(SEARCH_AND_LEARN, completions=["a\nb\n\nc", "A"], scores=[[1, 2, 3], [4]])
    assert [(r.steps, r.extra["scores"]) for r in parse(by_line)] == [(["a", "b", "c"], [1, 2, 3]), (["A"], [4])]
    # its own steps, and one list of scores for them: no pool
    assert "unknown format" in fault({"question": "q", "completions": ["a", "b"], "labels": [1, 0]})


def test_prmbench():
    kept = {"original_question": "Old?", "original_process": ["a"], "modified_steps": [2], "reason": "so"}
    extra = {**kept, "error_type": "circular"}
    assert parse(PRMBENCH) == [Record("circular_7", "Why?", ["a", "b", "c"], [1.0, 0.0, 0.0], extra)]
    assert parse(edited(PRMBENCH, error_steps=[]))[0].labels == [1.0, 1.0, 1.0]
    # in its older files one solution has the same idx for each type of error
    assert parse(edited(PRMBENCH, idx="7"))[0].id == "7/circular"


@pytest.mark.parametrize(
    ("first", "correct", "expected"),
    [
        (2, "wrong", [1.0, 0.0, None]),
        ("3", "wrong", [1.0, 1.0, 0.0]),
        (1.0, None, [0.0, None, None]),
        ("N/A", "correct", [1.0, 1.0, 1.0]),
        ("N/A", None, [1.0, 1.0, 1.0]),
        ("N/A", "wrong", None),
        (float("nan"), "correct", [1.0, 1.0, 1.0]),  # pandas reads N/A so
        (float("nan"), "wrong", None),
        (..., ..., None),
    ],
)
def test_reasoneval(first, correct, expected):
    raw = edited(REASONEVAL, model_output_solution_first_error_step=first, model_output_solution_correctness=correct)
    record = parse(raw)[0]
    assert (record.id, record.steps, record.labels) == ("u1", ["a", "b", "c"], expected)
    assert record.extra["answer"] == "7"
    # ReasonEval's own files list the lines of a step, and rate them where redundancy counts
    lines = edited(raw, model_output_steps=..., model_output_step_format=[["a", "a2"], ["b"], ["c"]])
    assert (parse(lines)[0].steps, parse(lines)[0].labels) == (["a\na2", "b", "c"], expected)
    assert parse(edited(lines, rating=[1, 0, -1]), neutral="unlabelled")[0].labels == [1.0, None, 0.0]


def test_versaprm():
    extra = {"answer": "B", "question_id": "R", "correct": False}
    assert parse(VERSAPRM) == [Record("R/4", "Why?", ["a", "b's"], [1.0, 0.0], extra)]
    for written, correct in (("True", True), (" false", False), (None, None), (0.5, 0.5)):
        assert parse(edited(VERSAPRM, parsed_answer_correctness=written))[0].extra["correct"] is correct
    pool = edited(
        VERSAPRM,
        labels=...,
        cot_id=...,
        parsed_answer_correctness=...,
        chain_of_thoughts=[
            {"steps": ["a"], "labels": [1], "parsed_answer_correctness": True},
            {"steps": ["b", "c"], "prm_reward": [0.5, 0.25]},
            {"steps": [], "labels": [], "prm_reward": []},
        ],
    )
    shared = {"answer": "B", "question_id": "R"}
    assert parse(pool) == [
        Record("R/1", "Why?", ["a"], [1.0], {**shared, "correct": True}),
        Record("R/2", "Why?", ["b", "c"], None, {**shared, "correct": None, "scores": [0.5, 0.25]}),
        Record("R/3", "Why?", [EMPTY_STEP], None, {**shared, "correct": None, "scores": [None]}),
    ]


def test_fields_of_other_names():
    options = ReadOptions(
        field=["prompt=task.text", "labels=ratings", "completions=lines"], label_map="-1=0,0=null,ok=0.5"
    )
    raw = {"task": {"text": "Why?"}, "lines": ["a", "b", "c"], "ratings": [-1, 0, "ok"], "n": 1}
    renamed = options.renamed(raw)
    assert recognise(renamed) == "trl"
    expected = Record("R", "Why?", ["a", "b", "c"], [0.0, None, 0.5], {"task": {"text": "Why?"}, "n": 1})
    assert FORMATS["trl"].parse(renamed, "R", options) == [expected]
    with pytest.raises(FormatError, match=r"field task\.text \(for prompt\) is missing \(fields found: lines\)"):
        options.renamed({"lines": []})
    # `steps` needs no new name
    plain = ReadOptions(field=["prompt=q"]).renamed({"q": "Why?", "steps": ["a"], "labels": [1]})
    assert parse(plain) == [Record("R", "Why?", ["a"], [1.0])]


@pytest.mark.parametrize(
    "name", ["trl", "openr", "openrlhf", "math-shepherd", "pool", "versaprm", "prm800k", "rlhflow"]
)
def test_a_label_map_says_what_labels_mean(name):
    """In every format with a label per step; a label that is not in the map is a fault."""
    raw = copy.deepcopy(VALID[name])
    if name == "pool":
        raw["responses"][0]["labels"] = [1, -1]
    options = {"label_map": "true=0.25,1=0.25,-1=0.75,0=0.75,+=0.25,-=0.75,0.25=0.75"}
    labels = [label for record in parse(raw, **options) for label in record.labels or [] if label is not None]
    assert set(labels) == {0.25, 0.75}, "the map turns the labels round"
    assert "which is not in the label map 7=1; add it" in fault(raw, label_map="7=1")


@pytest.mark.parametrize("text", ["", "1", "1=", "=1", "1=2", "1=x", "1=nan", "1=0,1.0=1", "1=0,,2=0", "1=1;0=0"])
def test_bad_label_maps(text):
    with pytest.raises(PQMError, match="label_map: "):
        ReadOptions(label_map=text)


def test_openr():
    assert parse(OPENR) == [Record("R", "How many?", ["one", "two."], [1.0, 0.0])]
    assert parse(edited(OPENR, labels=..., label=["-", "+"])) == [Record("R", "How many?", ["one", "two."], [0.0, 1.0])]
    assert parse(edited(OPENR, labels=...))[0].labels is None


@pytest.mark.parametrize(
    ("label", "after_error", "expected"),
    [
        (-1, "unlabelled", [1.0, 1.0, 1.0, 1.0]),
        (0, "unlabelled", [0.0, None, None, None]),
        (1, "unlabelled", [1.0, 0.0, None, None]),
        (1, "wrong", [1.0, 0.0, 0.0, 0.0]),
        (3, "wrong", [1.0, 1.0, 1.0, 0.0]),
        (None, "wrong", None),
        (1.0, "wrong", [1.0, 0.0, 0.0, 0.0]),
        (float("nan"), "wrong", None),
    ],
)
def test_processbench(label, after_error, expected):
    raw = edited(PROCESSBENCH, label=label)
    expected_record = Record("R", "Why?", ["a", "b", "c", "d"], expected, {"generator": "m"})
    assert parse(raw, after_error=after_error) == [expected_record]


def test_pool():
    shared = {"answer": "42", "question_id": "R"}
    assert parse(POOL) == [
        Record("R/1", "6x7?", ["six", "A: 42"], None, {**shared, "policy": "p", "correct": True}),
        # the reference answer, not the one extracted from the response
        Record("R/2", "6x7?", ["x\ny", "z"], None, shared),
    ]
    assert [r.id for r in parse(edited(POOL, question_id=7))] == ["7/1", "7/2"]
    assert parse(edited(POOL, question_id=7))[0].extra["question_id"] == "7"


def test_pool_with_labels():
    labelled = [
        {"text": "six\n\nA: 42", "labels": [True, None]},
        {"steps": ["a", "b"], "labels": [0.25, 0]},
        {"steps": ["a"], "labels": None},
        {"steps": ["a"], "labels": [None]},
    ]
    records = parse(edited(POOL, responses=labelled))
    assert [r.labels for r in records] == [[1.0, None], [0.25, 0.0], None, None]
    assert not any("labels" in r.extra for r in records)


def test_an_empty_candidate_of_a_pool_is_a_failed_attempt():
    """It is neither dropped, nor does it make the other candidates bad."""
    empty = [
        {"text": " \n"},
        {"text": "A: 42"},
        {"steps": [], "labels": [], "scores": []},
        {"steps": [""], "labels": [0]},
    ]
    assert [(r.id, r.steps, r.labels, r.extra.get("scores")) for r in parse(edited(POOL, responses=empty))] == [
        ("R/1", [EMPTY_STEP], None, None),
        ("R/2", ["A: 42"], None, None),
        ("R/3", [EMPTY_STEP], None, [None]),
        ("R/4", [EMPTY_STEP], [0.0], None),
    ]
    raw = edited(SEARCH_AND_LEARN, completions=["a", "", "\n\n"], scores=[[1], [2], []], agg_scores=..., pred="a")
    records = parse(raw)
    assert [r.steps for r in records] == [["a"], [EMPTY_STEP], [EMPTY_STEP]]
    assert [r.extra["scores"] for r in records] == [[1], [None], [None]]


def test_pool_splits_text_at_line_feeds_only():
    assert parse(edited(POOL, responses=[{"text": "a\u2028b\x0bc\nd"}]))[0].steps == ["a\u2028b\x0bc", "d"]


@pytest.mark.parametrize(("neutral", "value"), [("correct", 1.0), ("wrong", 0.0), ("unlabelled", None)])
def test_prm800k(neutral, value):
    extra = {"labeler": "L", "answer": "7", "finish_reason": "solution"}
    assert parse(PRM800K, neutral=neutral) == [
        Record("R/1", "P?", ["a1", "bh", "c0"], [1.0, None, value], extra),
        Record("R/2", "P?", ["a0"], [0.0], extra),
        # the label of a1 stands in the first record alone
        Record("R/3", "P?", ["a1", "b0"], [None, 0.0], extra),
    ]


def prm800k(*steps):
    return {"question": {"problem": "P?"}, "label": {"steps": list(steps)}}


def test_prm800k_path_that_nothing_continues():
    first = {"completions": [completion("a", 1)], "chosen_completion": 0.0}
    dropped = {"completions": [completion("b", -1), completion("c", -1)], "chosen_completion": None}
    given_up = {"completions": None, "chosen_completion": None, "human_completion": None}
    ids_steps = lambda raw: [(r.id, r.steps, r.labels) for r in parse(raw)]  # noqa: E731
    # the path ["a"] is only the beginning of its two alternatives
    expected = [("R/1", ["a", "b"], [1.0, 0.0]), ("R/2", ["a", "c"], [None, 0.0])]
    assert ids_steps(prm800k(first, dropped, given_up)) == expected
    # without alternatives there it stands for itself; a single trajectory needs no suffix
    assert ids_steps(prm800k(first, given_up)) == [("R", ["a"], [1.0])]
    assert ids_steps(prm800k(dropped)) == [("R/1", ["b"], [0.0]), ("R/2", ["c"], [0.0])]


def test_prm800k_labels_each_step_once():
    shared = {"completions": [completion("a", 1)], "chosen_completion": 0}
    # the third is the first once more; the fourth has no label of its own if neutral ones have none
    rated = [completion(text, rating) for text, rating in (("b", 1), ("c", -1), ("b", 1), ("d", 0), ("a", -1))]
    raw = prm800k(shared, {"completions": rated, "chosen_completion": 0})
    assert [(r.steps, r.labels) for r in parse(raw, neutral="unlabelled")] == [
        (["a", "b"], [1.0, 1.0]),
        (["a", "c"], [None, 0.0]),
        (["a", "a"], [None, 0.0]),
    ]
    assert len(parse(raw)) == 4
    twice = prm800k(shared, shared)  # equal texts in two places are two steps
    assert parse(twice)[0].labels == [1.0, 1.0]


def test_unlabelled_prm800k_path_has_no_labels():
    human = {"completions": [], "human_completion": {"text": "h"}, "chosen_completion": None}
    assert parse(prm800k(human))[0].labels is None


LABEL = "bad label: label 2 is "


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (edited(TRL, labels=[1, -100]), LABEL + "-100"),
        (edited(TRL, labels=[1, 2]), LABEL + "2"),
        (edited(TRL, labels=[1, float("nan")]), LABEL + "nan"),
        (edited(TRL, labels=[1, 1.0000001]), LABEL + "1.0000001"),
        (edited(TRL, labels=[1, "+"]), LABEL + "'+'"),
        (edited(TRL, labels=[1, [1]]), LABEL + "[1]"),
        (edited(TRL, labels=[1]), "labels and steps of different length: 1 labels for 2 steps"),
        (edited(TRL, labels=[]), "labels and steps of different length: 0 labels for 2 steps"),
        (edited(TRL, labels=1), "wrong type: labels is 1 (int); it must be a list"),
        (edited(TRL, labels=False), "wrong type: labels is False (bool); it must be a list"),
        (edited(TRL, prompt=" \n"), "empty question"),
        (edited(TRL, prompt=7), "wrong type: prompt is 7 (int); it must be text"),
        (
            edited(TRL, prompt=[{"role": "user", "content": "q"}]),
            "wrong type: prompt is a list of chat messages; it must be text",
        ),
        (edited(TRL, completions="ab"), "wrong type: completions is 'ab' (str); it must be a list"),
        (edited(TRL, completions=["a", 2]), "wrong type: step 2 is 2 (int); it must be text"),
        (edited(TRL, completions=["a", "\t"]), "empty step: step 2 of 2 is empty"),
        (edited(TRL, completions=[], labels=[]), "no steps"),
        (edited(SHEPHERD, input="How many? ки"), 'no first step: input holds no "Step 1:"'),
        (edited(SHEPHERD, input="Q ки Step 1: a ки"), "step markers: a step marker 'ки' comes before"),
        (edited(SHEPHERD, input="Step 1: a ки", label="Step 1: a +"), "empty question"),
        (edited(SHEPHERD, input="Q Step 1: a"), "step markers: no step marker 'ки' in the text"),
        (
            edited(SHEPHERD, input="Q Step 1: a ки b"),
            "step markers: text after the last step marker 'ки': 'b'",
        ),
        (
            edited(SHEPHERD, input="Q Step 1: a ки", label="Q Step 1: a *"),
            "step markers: label reads 'Q Step 1: a *' at the end of step 1",
        ),
        (edited(SHEPHERD, input="Q Step 1: a ки", label="Q Step 1: b +"), "step markers: label reads"),
        (edited(SHEPHERD, input="Q Step 1: a ки", label="Q Step 1: a "), "step markers: label reads"),
        (
            edited(SHEPHERD, input="Q Step 1: a ки", label="Q Step 1: a + b -"),
            "step markers: label continues after the last step: ' b -'",
        ),
        (edited(SHEPHERD, input="Q Step 1: a ки ки", label="Q Step 1: a + +"), "empty step: step 2 of 2"),
        (edited(SHEPHERD, label=[1, 0]), "wrong type: label is [1, 0] (list); it must be text"),
        (edited(OPENRLHF, value=["+"]), "labels and steps of different length: 1 labels for 2 steps"),
        (edited(OPENRLHF, value=["+", "?"]), LABEL + "'?'"),
        (edited(OPENR, labels=[1, 0, 1]), "labels and steps of different length: 3 labels for 2 steps"),
        (edited(OPENR, labels=0), "wrong type: labels is 0 (int); it must be a list"),
        (edited(OPENR, labels="+-"), "wrong type: labels is '+-' (str); it must be a list"),
        (edited(OPENR, process="one\ntwo"), "step markers: no step marker 'ки' in the text"),
        (edited(PROCESSBENCH, label=4), "bad label: label is 4; it must be -1 or the index of one of the 4"),
        (edited(PROCESSBENCH, label=-2), "bad label: label is -2"),
        (edited(PROCESSBENCH, label=True), "wrong type: label is True (bool); it must be a whole number"),
        (edited(PROCESSBENCH, steps=[], label=-1), "no steps"),
        (edited(POOL, responses=[]), "no steps: responses is an empty list"),
        (edited(POOL, responses=["x"]), "wrong type: response 1 is 'x' (str); it must be an object"),
        (
            edited(POOL, responses=[{"text": "a"}, {"text": "\n", "labels": [1, 0]}]),
            "labels and steps of different length: response 2: 2 labels for 1 steps",
        ),
        (
            edited(POOL, responses=[{"model_name": "m"}]),
            "missing field: field response 1: text is missing (fields found: model_name)",
        ),
        (edited(POOL, responses=[{"steps": ["a", ""]}]), "empty step: response 1: step 2 of 2 is empty"),
        (edited(POOL, responses=[{"steps": "ab"}]), "wrong type: response 1: steps is 'ab' (str); it must be a list"),
        (edited(POOL, responses=[{"text": "a\nb", "labels": [1, 2]}]), "bad label: response 1: label 2 is 2"),
        (
            edited(POOL, responses=[{"text": "a"}, {"text": "a\nb", "labels": [1]}]),
            "labels and steps of different length: response 2: 1 labels for 2 steps",
        ),
        (
            edited(POOL, responses=[{"text": "a", "labels": 1}]),
            "wrong type: response 1: labels is 1 (int); it must be a list",
        ),
        (edited(POOL, question=""), "empty question"),
        (edited(RLHFLOW, conversations=[]), "no steps: there are no turns"),
        (
            edited(RLHFLOW, conversations=[{"role": "user", "content": "Why? So."}]),
            "no first step: nothing shows where the question ends in the first turn 'Why? So.'",
        ),
        (
            edited(RLHFLOW, conversations=[{"role": "system", "content": "a"}]),
            "turns out of order: turn 1 is by 'system' instead of user",
        ),
        (
            edited(RLHFLOW, conversations=[*RLHFLOW["conversations"][:1], {"role": "assistant", "content": "yes"}]),
            "bad label: turn 2 is 'yes'; an answer must be + or -",
        ),
        (edited(MATH_APS, reasoning_steps=MATH_APS["reasoning_steps"][:1]), "no steps: no reasoning step goes beyond"),
        (
            edited(MATH_APS, reasoning_steps=[{"solution_prefix": "a", "mc_value": 2}]),
            "bad label: reasoning step 1: mc_value is 2",
        ),
        *[
            (
                edited(MATH_APS, reasoning_steps=[*MATH_APS["reasoning_steps"], {"solution_prefix": p, "mc_value": 1}]),
                f"no question: reasoning step 6: solution_prefix {p!r} does not begin with the question",
            )
            for p in ("1+4 is 5.", "Sum 1 to 4.5 is", "Sum 1")
        ],
        (edited(SEARCH_AND_LEARN, scores=[[1]]), "lists of different length: scores has 1 entries for 2 completions"),
        (edited(SEARCH_AND_LEARN, scores=[1, 2]), "wrong type: scores of completion 1 is 1 (int); it must be a list"),
        (edited(SEARCH_AND_LEARN, completions=["a", None]), "wrong type: completion 2 is None (NoneType)"),
        (edited(PRMBENCH, error_steps=[0]), "bad label: error_steps holds 0 of 3 steps, counted from 1"),
        (edited(PRMBENCH, error_steps=[4]), "bad label: error_steps holds 4 of 3 steps"),
        (
            edited(REASONEVAL, model_output_solution_first_error_step=4),
            'bad label: model_output_solution_first_error_step is 4; it must be "N/A" or one of the steps 1 to 3',
        ),
        (edited(REASONEVAL, model_output_solution_first_error_step=0), "bad label: "),
        (edited(REASONEVAL, model_output_solution_first_error_step="two"), "bad label: "),
        (
            edited(REASONEVAL, model_output_solution_correctness="correct"),
            "bad label: model_output_solution_first_error_step is 2 in a solution judged correct",
        ),
        (
            edited(REASONEVAL, model_output_solution_correctness="maybe"),
            "bad label: model_output_solution_correctness is",
        ),
        (edited(VERSAPRM, labels="[1, 2]"), "bad label: label 2 is 2; it must be 1, 0, -1 or null"),
        (edited(VERSAPRM, chain_of_thoughts="[a"), "wrong type: chain_of_thoughts is '[a', which is not a list"),
        *[
            (edited(VERSAPRM, chain_of_thoughts=text), "not a list (two texts with no comma between them)")
            for text in ("['a' 'b']", "['a'\n \"b's\"]", "['a', 'b' 'c']", "['a' # so\n 'b']")
        ],
        (edited(VERSAPRM, labels="[1 -1]"), "wrong type: labels is '[1 -1]', which is not a list"),
        (
            edited(VERSAPRM, parsed_answer_correctness="yes"),
            "bad label: parsed_answer_correctness is 'yes'; give true, false or null",
        ),
        (prm800k(), "no steps"),
        (prm800k("x"), "wrong type: step 1 is 'x' (str); it must be an object"),
        (
            prm800k({"completions": [completion("a", 2)], "chosen_completion": 0}),
            "bad label: step 1, completion 0: rating is 2; it must be 1, 0, -1 or null",
        ),
        *[
            (
                prm800k(
                    {"completions": [completion("a", 1)], "chosen_completion": 0},
                    {"completions": [completion(text, None) for text in open_texts], "chosen_completion": None},
                    {"completions": [completion("c", 1)], "chosen_completion": chosen},
                ),
                "nothing chosen: step 3 continues although nothing was chosen in step 2; choose there",
            )
            for open_texts in (["b", "b2"], [])
            for chosen in (0, None)
        ],
        (
            prm800k({"completions": [completion("a", 1), completion("a", -1)], "chosen_completion": 0}),
            "two labels: step 1 'a' has the labels 1.0 and 0.0 behind the same steps; give it one",
        ),
        (
            prm800k({"completions": [completion("a", 1)], "chosen_completion": 1}),
            "bad choice: step 1: chosen_completion is 1 of 1",
        ),
        (prm800k({"completions": [completion("a", 1)], "chosen_completion": -1}), "bad choice: step 1"),
        (
            prm800k({"completions": [{"rating": 1}], "chosen_completion": 0}),
            "missing field: field step 1, completion 0: text is missing",
        ),
    ],
)
def test_faults_say_what_was_found(raw, expected):
    assert expected in fault(raw)


def test_a_forced_format_names_the_missing_field():
    with pytest.raises(FormatError, match=r"field prompt is missing \(fields found: question, process, labels\)"):
        FORMATS["trl"].parse(OPENR, "R", ReadOptions())


def test_unknown_fields_list_all_formats():
    message = fault({"q": 1, "a": 2})
    assert "fields q, a are of no known format" in message
    assert all(f"{name} ({known})" in message for name, known in FORMATS.items())
    assert "with --field" in message
    assert "fields none" in fault({})


@pytest.mark.parametrize(("value", "expected"), [("x", "x"), (3, "3"), (None, None)])
def test_explicit_id(value, expected):
    assert explicit_id({"id": value}) == expected


@pytest.mark.parametrize("value", [True, 1.5, " ", ["x"]])
def test_bad_id(value):
    with pytest.raises(FormatError, match=r"id is .* must be text or a whole number"):
        explicit_id({"id": value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "csv"),
        ("neutral", "maybe"),
        ("after_error", "x"),
        ("step_marker", " "),
        ("field", ["x"]),
        ("field", ["prompt=a", "prompt=b"]),
    ],
)
def test_bad_options(name, value):
    with pytest.raises(PQMError, match=name):
        ReadOptions(**{name: value})


def paths(value, path=()):
    """The path to every value inside nested objects and lists."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*path, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.parametrize("name", VALID)
@settings(max_examples=40)
@given(data=st.data())
def test_one_odd_value_gives_a_fault_or_sound_records(name, data):
    raw = copy.deepcopy(VALID[name])
    *parents, last = data.draw(st.sampled_from([path for path in paths(raw) if path]))
    owner = raw
    for key in parents:
        owner = owner[key]
    owner[last] = data.draw(JSON)
    try:
        records = FORMATS[name].parse(raw, "R", ReadOptions())
    except FormatError:
        return
    assert records
    for record in records:
        assert record.prompt.strip()
        assert record.steps
        assert all(step.strip() for step in record.steps)
        assert record.labels is None or len(record.labels) == len(record.steps)
        assert all(label is None or 0 <= label <= 1 for label in record.labels or [])
