"""Solutions and options that Scorer accepts or refuses."""

import numpy as np
import pytest
import tiny
from packed_models import make_model

from pqm_fast.data.encode import Encoder, Template
from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.scoring.scorer import Scorer


def test_scorer_takes_any_order_and_length(tmp_path):
    model = make_model(tmp_path).eval()
    rng = np.random.default_rng(1)
    solutions = [(tiny.text(rng, 4), [tiny.text(rng, 3)] * int(n)) for n in rng.integers(1, 9, 20)]
    encoder = Encoder(tiny.tokenizer(), Template(step_token="last"), 128)
    together = Scorer(model, encoder, max_tokens=100).score(solutions)
    alone = [Scorer(model, encoder).score([s])[0] for s in solutions]
    for a, b, (_, steps) in zip(together, alone, solutions, strict=True):
        assert len(a) == len(steps)
        assert a == pytest.approx(b, abs=1e-5)
    assert Scorer(model, encoder).score([]) == []


def test_steps_beyond_the_context_have_no_score(tmp_path):
    model = make_model(tmp_path).eval()
    encoder = Encoder(tiny.tokenizer(), Template(step_token="last"), 10)
    cut = ("w3 w4", ["w5 w6 w7", "w8 w9 w10", "w11 w12 w13"])
    scorer = Scorer(model, encoder)
    scores, none, whole = scorer.score([cut, ("w3 " * 20, ["w5", "w6"]), ("w3", ["w5"])])
    assert [s is None for s in scores] == [False, False, True]
    assert none == [None, None]
    assert whole == pytest.approx(scorer.score([("w3", ["w5"])])[0], abs=1e-5)
    assert scorer.score([("w3 " * 20, ["w5"])]) == [[None]]


HALF = "w5 \ud800"


@pytest.mark.parametrize(
    ("solutions", "message"),
    [
        (None, "solutions are None; pass a list of (question, steps) pairs"),
        ("w3 w4", "solutions are 'w3 w4'; pass a list"),
        ({"w3": ["w4"]}, "solutions are {'w3': ['w4']}; pass a list"),
        (("w3", ["w4"]), "solution 0: 'w3' is not a pair; pass (question, steps)"),
        ([("w3", ["w4"]), ("w3", "abc")], "solution 1: steps are 'abc' (str); pass a non-empty list of texts"),
        ([("w3", None)], "solution 0: steps are None (NoneType); pass a non-empty list of texts"),
        ([("w3", {"w4"})], "solution 0: steps are {'w4'} (set); pass"),
        ([("w3", [])], "solution 0: there are no steps; give at least one"),
        ([("w3", ["w4", None])], "solution 0: step 2 is None (NoneType); it must be text"),
        ([("w3", ["w4", " \n"])], "solution 0: step 2 of 2 is empty"),
        ([("w3", [["w4"]])], "solution 0: step 1 is ['w4'] (list); it must be text"),
        ([(" ", ["w4"])], "solution 0: the question is empty"),
        ([(None, ["w4"])], "solution 0: the question is None (NoneType); it must be text"),
        ([("w3", ["w4"], 1)], "solution 0: ('w3', ['w4'], 1) is not a pair"),
        ([None], "solution 0: None is not a pair"),
        ([("w3", ["w4"]), ("w3", ["w4", "w5", HALF])], "solution 1: step 3 holds half a surrogate pair"),
        ([("w3", [HALF])], "solution 0: step 1 holds half a surrogate pair"),
        ([(HALF, ["w4"])], "solution 0: the question holds half a surrogate pair"),
    ],
)
def test_bad_solutions_are_refused(small_scorer, solutions, message):
    with pytest.raises(PQMError) as error:
        small_scorer.score(solutions)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        (None, {}, "model: None (NoneType) was given"),
        (3, {}, "model: 3 (int) was given"),
        ("", {}, "model: empty"),
        ("./nowhere", {}, "./nowhere: no such folder"),
        ("./nowhere", {"third_party": "trl"}, "third_party: 'trl' was given; pass ThirdPartyPRM('trl')"),
        ("m", {"device": "abacus"}, "device: abacus cannot be used here"),
        ("m", {"device": None}, "device: None (NoneType) was given"),
        ("m", {"max_tokens": 0}, "max_tokens: 0 was given"),
        ("m", {"max_tokens": "x"}, "max_tokens: 'x' (str) was given; pass a whole number"),
        ("m", {"max_tokens": None}, "max_tokens: None (NoneType) was given"),
        ("m", {"max_tokens": 1.5}, "max_tokens: 1.5 (float) was given"),
        ("m", {"max_length": "x"}, "max_length: 'x' (str) was given; pass a whole number"),
        ("m", {"max_length": 2.5}, "max_length: 2.5 (float) was given"),
        ("m", {"max_length": True}, "max_length: True (bool) was given"),
    ],
)
def test_bad_options_are_refused(path, options, message):
    with pytest.raises(PQMError) as error:
        Scorer.from_pretrained(path, **options)
    assert message in str(error.value)
    if not options and not isinstance(path, str):
        with pytest.raises(PQMError, match="was given; name a folder or a hub id"):
            StepQModel.from_pretrained(path)


def test_any_ordered_collection_of_texts_is_accepted(small_scorer):
    pairs = [("w3", ["w4", "w5"])] * 2
    assert small_scorer.score(iter([("w3", ("w4", "w5")), ["w3", iter(["w4", "w5"])]])) == small_scorer.score(pairs)
    assert small_scorer.score(np.array([])) == []


@pytest.fixture(scope="module")
def small_scorer(tmp_path_factory):
    model = make_model(tmp_path_factory.mktemp("small")).eval()
    return Scorer(model, Encoder(tiny.tokenizer(), Template(step_token="last"), 10))
