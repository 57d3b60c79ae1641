"""Whatever a client sends, it gets one error in JSON with a code, and the server goes on."""

import json

import pytest
import requests
import torch
from serving import config, error, head, post, raw, read_answer, running

from pqm_fast.errors import PQMError
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.serve.options import Limits, ServeConfig

GOOD = {"question": "w3", "solutions": [["w4"]]}


@pytest.fixture(autouse=True)
def goes_on(server):
    """After each test the server scores as before."""
    yield
    assert post(server, "/score", GOOD).status_code == 200


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"solutions": []}, "bad_request"),
        ({"solutions": [[]]}, "bad_solution"),
        ({"solutions": [["w4", " "]]}, "bad_solution"),
        ({"solutions": [["w4", None]]}, "bad_request"),
        ({"solutions": "w4"}, "bad_request"),
        ({"question": None}, "bad_request"),
        ({"question": 3}, "bad_request"),
        ({"question": "w3 <|step|> w4"}, "step_token_in_the_text"),
        ({"solutions": [["w4"], ["w5<|step|>"]]}, "step_token_in_the_text"),
        ({"question": "\ud800"}, "bad_request"),
        ({"solutions": [["w4\ud800"]]}, "bad_request"),
        ({"rewards": "difference", "reward_options": {"how": 1}}, "bad_request"),
        ({"rewards": "difference", "reward_options": {"\ud800": 1}}, "bad_request"),
        ({"reward_options": {"threshold": 1.0}}, "bad_option"),
        ({"solutons": [["w4"]]}, "bad_request"),
        ({"aggregate": ["median"]}, "bad_option"),
        ({"aggregate": "min"}, "bad_request"),
        ({"rewards": "dense"}, "bad_option"),
        ({"rewards": "verified-prefix"}, "bad_option"),  # it needs a threshold
        ({"rewards": "difference", "reward_options": {"threshold": 1.0}}, "bad_option"),
        ({"separator": ""}, "bad_request"),
    ],
)
def test_score(server, change, code):
    assert error(post(server, "/score", GOOD | change)) == (400, code)


def test_the_message_names_the_place_and_what_to_do(server):
    def message(change):
        return post(server, "/score", GOOD | change).json()["error"]["message"]

    assert message({"solutons": 1}).startswith(
        "the body: unknown field 'solutons'; the fields are question, solutions, "
    )
    several = message({"solutions": 1, "question": 1, "lenient": 1, "rewards": 1})
    assert several.startswith(
        "question: Input should be a valid string; solutions: Input should be a valid list; lenient"
    )
    assert several.endswith("; and 1 more")
    wrong_step = message({"solutions": [["w4"], ["w5", 1]]})
    assert wrong_step == "solutions.1.1: Input should be a valid string; solutions.1: Input should be a valid string"
    assert len(message({"solutons" * 10_000: 1})) < 1000
    in_text = message({"solutions": [["w4"], ["w5<|step|>"]]})
    assert in_text == "solution 1: the step token '<|step|>' occurs in one of its steps; remove it from the text"


@pytest.mark.parametrize(
    ("body", "kind", "answer"),
    [
        (b"", "application/json", (400, "bad_request")),
        (b"{", "application/json", (400, "bad_request")),
        (b"[1]", "application/json", (400, "bad_request")),
        (b"\xff\xfe", "application/json", (400, "bad_request")),
        (b"[" * 100_000, "application/json", (400, "bad_request")),
        (b'{"question": NaN, "solutions": 1e999}', "application/json", (400, "bad_request")),
        (json.dumps(GOOD).encode(), "text/plain", (415, "not_json")),
        (b" " * 10 * 2**20, "application/json", (413, "too_large")),
    ],
)
def test_bodies_that_are_not_requests(server, body, kind, answer):
    sent = requests.post(f"{server.url}/score", data=body, headers={"Content-Type": kind}, timeout=30)
    assert error(sent) == answer


def test_ten_megabytes_of_text(server):
    length = 10 * 2**20
    # the whole body is sent before the answer is read
    sent = raw(server, head("/score", length, "Connection: close"), b" " * length)
    status, answer = read_answer(sent)
    assert (status, answer["error"]["code"]) == (413, "too_large")
    assert error(post(server, "/score", GOOD | {"solutions": [["w4 " * 3_500_000]]})) == (413, "too_large")
    headers = {"Content-Type": "application/json"}
    in_pieces = (b" " * 2**20 for _ in range(10))  # without a length in the head
    assert error(requests.post(f"{server.url}/score", in_pieces, headers=headers, timeout=30)) == (413, "too_large")
    assert error(post(server, "/score", GOOD | {"solutions": [["w4"]] * 1025})) == (413, "too_many_solutions")
    long = post(server, "/score", GOOD | {"solutions": [["w4 " * 200_000]]})
    assert long.json()["scores"] == [[None]]


def test_long_lists(server):
    """Only the first wrong item is looked at, or the list would cost an error for each."""
    for wrong in (1, [1], ["w4", 1]):
        answer = post(server, "/score", GOOD | {"solutions": [wrong] * 50_000})
        assert error(answer) == (400, "bad_request")
        assert "more" not in answer.json()["error"]["message"]
    assert error(post(server, "/score", GOOD | {"solutions": [""] * 100_001})) == (413, "too_many_items")
    assert error(post(server, "/score", GOOD | {"solutions": [["w4"] * 100_001]})) == (413, "too_many_items")
    assert error(post(server, "/score", GOOD | {"solutions": [["w4"] * 50_001] * 2})) == (413, "too_many_steps")
    in_text = {"solutions": ["w4 " * 100_001], "separator": " "}
    assert error(post(server, "/score", GOOD | in_text)) == (413, "too_many_steps")


def test_more_steps_than_fit(server, scorer):
    [expected] = scorer.score([("w3", ["w4"] * 300)])
    [got] = post(server, "/score", GOOD | {"solutions": [["w4"] * 300]}).json()["scores"]
    assert [q is None for q in got] == [q is None for q in expected]
    assert 40 < got.index(None) < 128
    assert got[: got.index(None)] == pytest.approx(expected[: got.index(None)], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({"input": []}, (400, "no_input")),
        ({"input": [[]]}, (400, "no_steps")),
        ({"input": [3, 4]}, (400, "no_steps")),
        ({"input": [3, -1, 90]}, (400, "bad_token")),
        ({"input": [3, 10**12, 90]}, (400, "bad_token")),
        ({"input": [3] * 200}, (400, "too_long")),
        ({"input": [[90]] * 1025}, (413, "too_many_solutions")),
        ({"input": [3.5]}, (400, "bad_request")),
        ({"input": [3, 90], "task": "embed"}, (400, "bad_request")),
        ({"input": [3, 90], "model": "other"}, (404, "model_not_found")),
        ({"input": [3, 90], "encoding_format": "base64"}, (400, "bad_request")),
        ({"input": "w3\ud800"}, (400, "bad_request")),
        ({"input": [3, 90], "request_id": "\ud800"}, (400, "bad_request")),
        ({"input": [[1.5]] * 100_000}, (400, "bad_request")),
    ],
)
def test_pooling(server, change, answer):
    assert error(post(server, "/pooling", change)) == answer


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/get_reward", {"query": [], "prompts": []}, "bad_request"),
        ("/get_reward", {"query": ["[user] w3 [assistant] w4"], "prompts": []}, "bad_request"),
        ("/get_reward", {"query": ["w4"], "prompts": ["w3"]}, "unknown_conversation"),
        ("/get_reward", {"query": ["[user] w3"], "prompts": ["[user] w3"]}, "unknown_conversation"),
        ("/classify", {"input": ""}, "bad_request"),
        ("/classify", {"input": "[user] w3"}, "unknown_conversation"),
        ("/classify", {"input": "[user]  [assistant] w4"}, "bad_solution"),
        ("/classify", {"input": "[user] w3 [assistant] w4 [user] w5 [assistant] w6"}, "unknown_conversation"),
        ("/v1/embeddings", {"input": "[user] w3 [assistant] w4", "dimensions": 3}, "bad_request"),
    ],
)
def test_rewards(server, path, body, code):
    assert error(post(server, path, body)) == (400, code)


def test_paths_and_methods(server):
    assert error(requests.get(f"{server.url}/", timeout=10)) == (404, "no_such_path")
    other_method = requests.get(f"{server.url}/score", timeout=10)
    assert error(other_method) == (405, "wrong_method")
    assert other_method.headers["Allow"] == "POST"
    assert error(post(server, "/score/", GOOD)) == (404, "no_such_path")
    assert requests.head(f"{server.url}/health", timeout=10).ok
    assert read_answer(raw(server, b"\x16\x03\x01 not HTTP\r\n\r\n"))[0] == 400


def test_token(model, monkeypatch, scorer):
    monkeypatch.setenv("PQM_FAST_TOKEN", "of the test")
    with pytest.raises(PQMError, match="no token can have"), running(config(model)):
        pass
    monkeypatch.setenv("PQM_FAST_TOKEN", "secret")
    with running(config(model)) as own:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
            assert error(post(own, "/score", GOOD, headers=headers)) == (401, "unauthorized")
            assert error(requests.get(f"{own.url}/metrics", headers=headers, timeout=10)) == (401, "unauthorized")
        for scheme in ("Bearer", "bearer"):
            assert post(own, "/score", GOOD, headers={"Authorization": f"{scheme} secret"}).ok
        assert requests.get(f"{own.url}/health", timeout=10).ok
        from pqm_fast.scoring.remote import RemoteScorer

        assert RemoteScorer(own.url).score([("w3", ["w4"])])[0] == pytest.approx(scorer.score([("w3", ["w4"])])[0])
        monkeypatch.setenv("PQM_FAST_TOKEN", "other")
        with pytest.raises(PQMError, match="Authorization: Bearer TOKEN"):
            RemoteScorer(own.url).score([("w3", ["w4"])])


def test_a_model_that_breaks(server, monkeypatch):
    """A request that a model cannot score fails alone, even in a batch with others."""
    scores = StepQModel.scores

    def broken(self, batch, *more):
        if 13 in batch.input_ids:  # w13
            raise RuntimeError("secret of the house")
        q = scores(self, batch, *more)
        return torch.full_like(q, torch.nan) if 14 in batch.input_ids else q

    monkeypatch.setattr(StepQModel, "scores", broken)
    from concurrent.futures import ThreadPoolExecutor

    bodies = [GOOD | {"solutions": [[f"w{word}"]]} for word in (12, 13, 14, 15)] * 4
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda body: post(server, "/score", body), bodies))
    for body, answer in zip(bodies, answers, strict=True):
        if body["solutions"] == [["w13"]]:
            assert error(answer) == (500, "scoring_failed")
            assert "secret" not in answer.text
        elif body["solutions"] == [["w14"]]:
            assert error(answer) == (500, "broken_model")
            assert "run" not in answer.text  # the folder of the model
        else:
            assert answer.status_code == 200


def test_out_of_memory(server, monkeypatch):
    def full(self, batch, *more):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(StepQModel, "scores", full)
        assert error(post(server, "/score", GOOD)) == (500, "out_of_memory")


def test_a_defect_of_a_route(server, monkeypatch):
    from pqm_fast.serve.service import Service

    async def defect(self, solutions):
        raise KeyError("secret of the house")

    with monkeypatch.context() as patch:
        patch.setattr(Service, "score", defect)
        answer = post(server, "/score", GOOD)
    assert error(answer) == (500, "internal")
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70000}, "port: 70000"),
        ({"gather_ms": -1.0}, "gather_ms"),
        ({"text_separator": ""}, "text_separator: empty"),
        ({"conversation": "{prompt}"}, "must occur in it once"),
        ({"conversation": "{prompt}{solution}"}, "then a text"),
        ({"conversation": "{solution} {prompt}"}, "must occur in it once"),
    ],
)
def test_options(options, message):
    with pytest.raises(PQMError, match=message):
        ServeConfig("run", **options)


def test_limits():
    with pytest.raises(PQMError, match="max_solutions: 0"):
        Limits(max_solutions=0)


def test_a_port_that_is_taken_and_an_address_that_is_not_ours(server, model):
    from dataclasses import replace

    for changes in ({"port": server.port}, {"host": "192.0.2.1"}, {"host": "no such host"}):
        with pytest.raises(PQMError, match="cannot listen there"), running(replace(config(model), **changes)):
            pass


def test_a_model_that_scores_nothing(model, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(StepQModel, "scores", lambda self, batch, *more: torch.full((len(batch.labels),), torch.nan))
        with pytest.raises(PQMError, match="not finite"), running(config(model)):
            pass
