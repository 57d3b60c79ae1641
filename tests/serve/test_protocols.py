"""Q-values by every way in equal those of Scorer, and rewards their definition; asked by real client libraries."""

import json
import math
import struct
from base64 import b64decode

import numpy as np
import openai
import pytest
import requests
import tiny
from serving import checkpoint, config, error, post, running

from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import AGGREGATORS, aggregate
from pqm_fast.rewards import REWARDS, step_rewards
from pqm_fast.scoring.open_scorer import open_scorer
from pqm_fast.scoring.remote import RemoteScorer

QUESTION = "w3 w4 w5"
SOLUTIONS = [["w6 w7", "w8 w9 w10"], ["w6 w7", "w11", "w12 w13"], ["w14"]]


def expected(scorer, question=QUESTION, solutions=SOLUTIONS):
    return scorer.score([(question, steps) for steps in solutions])


def flat(scores):
    return [q for steps in scores for q in steps]


def test_the_model_tells_solutions_apart(scorer):
    assert np.std(flat(expected(scorer))) > 0.1  # or every comparison below would be empty


def test_score(server, scorer):
    body = {"question": QUESTION, "solutions": SOLUTIONS}
    answer = post(server, "/score", body).json()
    assert set(answer) == {"model", "scores"}
    assert flat(answer["scores"]) == pytest.approx(flat(expected(scorer)), abs=1e-5)
    assert [len(steps) for steps in answer["scores"]] == [2, 3, 1]


def test_solutions_as_texts_are_split_and_their_steps_are_told(server, scorer):
    texts = ["w6 w7\n\n\n w8 w9 w10 \n\n", "w6 w7;w11; w12 w13"]
    by_default = post(server, "/score", {"question": QUESTION, "solutions": [texts[0], SOLUTIONS[1]]}).json()
    assert by_default["spans"] == [[[0, 5], [9, 18]], None]
    assert flat(by_default["scores"]) == pytest.approx(flat(expected(scorer)[:2]), abs=1e-5)
    by_own = post(server, "/score", {"question": QUESTION, "solutions": [texts[1]], "separator": ";"}).json()
    assert [texts[1][start:end] for start, end in by_own["spans"][0]] == SOLUTIONS[1]
    assert by_own["scores"][0] == pytest.approx(expected(scorer)[1], abs=1e-5)
    blank = post(server, "/score", {"question": QUESTION, "solutions": [" \n "]}).json()
    assert blank["spans"] == [[]]  # a failed candidate counts as a step that says so
    assert blank["scores"][0] == pytest.approx(expected(scorer, solutions=[["(empty completion)"]])[0], abs=1e-5)


@pytest.mark.parametrize("how", REWARDS)
def test_step_rewards_and_aggregates(server, scorer, how):
    options = {"threshold": 0.2} if how == "verified-prefix" else {}
    body = {"question": QUESTION, "solutions": SOLUTIONS, "rewards": how, "reward_options": options}
    answer = post(server, "/score", body | {"aggregate": [*AGGREGATORS, "min"]}).json()
    scores = expected(scorer)
    assert flat(answer["rewards"]) == pytest.approx(flat(step_rewards(q, how, **options) for q in scores), abs=1e-5)
    assert set(answer["aggregates"]) == set(AGGREGATORS)
    for name, values in answer["aggregates"].items():
        assert values == pytest.approx([aggregate(q, name) for q in scores], abs=1e-5)


def test_steps_beyond_the_context_are_null(server, scorer):
    long = [tiny.text(np.random.default_rng(0), 40) for _ in range(5)]  # the context is 128 tokens
    body = {"question": QUESTION, "solutions": [long, ["w6"], ["w7 " * 130, "w8"]], "aggregate": ["min"]}
    answer = post(server, "/score", body | {"rewards": "difference"}).json()
    scores = expected(scorer, solutions=[long])[0]
    assert scores[-1] is None
    assert scores[0] is not None
    assert [q is None for q in answer["scores"][0]] == [q is None for q in scores]
    assert answer["scores"][2] == [None, None]
    assert [value is None for value in answer["aggregates"]["min"]] == [True, False, True]
    assert answer["rewards"][2] == [0.0, 0.0]


def test_a_step_token_in_the_text_of_a_policy(server, scorer):
    """It is no error where nobody has read the text: the solution has no score, and no reward."""
    solutions = [SOLUTIONS[0], ["w6", "w7<|step|>"], SOLUTIONS[2]]
    right, _, last = scorer.score([(QUESTION, steps) for steps in solutions], lenient=True)
    assert [right, last] == [pytest.approx(q, abs=1e-5) for q in (expected(scorer)[0], expected(scorer)[2])]
    wanted = [pytest.approx(right, abs=1e-5), [None, None], pytest.approx(last, abs=1e-5)]
    assert scorer.score([(QUESTION, steps) for steps in solutions], lenient=True)[1] == [None, None]
    assert RemoteScorer(server.url).score([(QUESTION, steps) for steps in solutions], lenient=True) == wanted
    text = f"[user] {QUESTION} [assistant] w6 w7<|step|>"
    prompt = f"[user] {QUESTION} [assistant] "
    assert post(server, "/classify", {"input": text}).json()["data"][0]["probs"] == [0.0]
    assert post(server, "/get_reward", {"query": [text], "prompts": [prompt]}).json()["rewards"] == [0.0]


def test_vllm_pooling(server, scorer):
    encoded = scorer.encoder([_record(steps) for steps in SOLUTIONS])
    ids = [e.input_ids.tolist() for e in encoded]
    body = {"model": "run", "task": "token_classify", "use_activation": False}
    answer = post(server, "/pooling", body | {"input": ids}).json()
    assert [row["index"] for row in answer["data"]] == [0, 1, 2]
    assert [len(row["data"]) for row in answer["data"]] == [2, 3, 1]
    values = [value for row in answer["data"] for [value] in row["data"]]
    assert values == pytest.approx(flat(expected(scorer)), abs=1e-5)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
    one = post(server, "/pooling", body | {"input": [*ids[1], 5, 6]}).json()  # tokens behind the last step
    assert [value for [value] in one["data"][0]["data"]] == pytest.approx(expected(scorer)[1], abs=1e-5)
    text = post(server, "/pooling", body | {"input": "w3 w4 w5 w6 w7<|step|>w8 w9 w10<|step|>"}).json()
    assert [value for [value] in text["data"][0]["data"]] == pytest.approx(expected(scorer)[0], abs=1e-5)


def test_openrlhf_get_reward(server, scorer):
    """The body as OpenRLHF 0.11.2 sends it (`SingleTurnAgentExecutor`): the decoded tokens, the prompt, the label."""
    prompt = f"[user] {QUESTION} [assistant] "
    queries = [prompt + "w6 w7\n\nw8 w9 w10<eos>", prompt + "w14", prompt + "w7 " * 130]
    body = {"query": queries, "prompts": [prompt] * 3, "labels": ["4", "5", None]}
    answer = post(server, "/get_reward", body).json()
    lowest = [min(q) for q in expected(scorer, solutions=[SOLUTIONS[0], SOLUTIONS[2]])]
    rewards = [*(1 / (1 + math.exp(-q)) for q in lowest), 0.0]  # the last does not fit
    assert answer["rewards"] == pytest.approx(rewards, abs=1e-5)
    assert answer["scores"] == answer["rewards"]
    assert answer["extra_logs"] == {"steps": [2.0, 1.0, 1.0], "steps_beyond_context": [0.0, 0.0, 1.0]}


def test_verl_classify_and_embeddings(server, scorer):
    """The bodies and the reading of verl 0.9.1 (`compute_score_disrm`), for vLLM and for SGLang."""
    text = f"[user] {QUESTION} [assistant] w6 w7\n\nw8 w9 w10 "
    reward = 1 / (1 + math.exp(-min(expected(scorer)[0])))
    path_of_trainer = "/models/other/run"
    vllm = post(server, "/classify", {"model": path_of_trainer, "input": text, "use_activation": False}).json()
    assert vllm["data"][-1]["probs"][-1] == pytest.approx(reward, abs=1e-5)
    sglang = post(server, "/v1/embeddings", {"model": path_of_trainer, "input": text}).json()
    assert sglang["data"][-1]["embedding"][-1] == pytest.approx(reward, abs=1e-5)


def test_openai_client(server, scorer):
    text = f"[user] {QUESTION} [assistant] w6 w7\n\nw8 w9 w10"
    reward = 1 / (1 + math.exp(-min(expected(scorer)[0])))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["run"]
        answer = client.embeddings.create(model="run", input=[text, text])  # asks for base64
        assert [row.embedding for row in answer.data] == [[pytest.approx(reward, abs=1e-5)]] * 2
        with pytest.raises(openai.NotFoundError, match="model 'gpt' is not served here"):
            client.embeddings.create(model="gpt", input=text)
        with pytest.raises(openai.BadRequestError, match="does not begin with"):
            client.embeddings.create(model="run", input="no chat")
    encoded = post(server, "/v1/embeddings", {"input": text, "encoding_format": "base64"}).json()
    assert struct.unpack("<f", b64decode(encoded["data"][0]["embedding"])) == pytest.approx((reward,), abs=1e-5)


def test_remote_scorer(server, scorer, monkeypatch):
    pairs = [(question, steps) for question in ("w3", "w4 w5", "w6") for steps in SOLUTIONS][::-1]
    remote = open_scorer(server.url)
    assert isinstance(remote, RemoteScorer)
    assert flat(remote.score(pairs)) == pytest.approx(flat(scorer.score(pairs)), abs=1e-5)
    assert remote.score([]) == []
    monkeypatch.setattr("pqm_fast.scoring.remote.SOLUTIONS_OF_A_REQUEST", 2)
    assert flat(remote.score(pairs)) == pytest.approx(flat(scorer.score(pairs)), abs=1e-5)
    with pytest.raises(PQMError, match=r"/score: solution 0: the step token .* occurs in one of its steps"):
        remote.score([("w3", ["w4<|step|>"])])
    with pytest.raises(PQMError, match="solution 1: steps are 'abc'"):  # as Scorer says it
        remote.score([("w3", ["w4"]), ("w3", "abc")])


@pytest.mark.parametrize("scores", [[[1.0]], [[1.0, float("nan")]], [[1.0, "2"]], [1.0, 2.0], [], None])
def test_an_answer_that_is_not_of_the_server(scores, monkeypatch):
    monkeypatch.setattr("pqm_fast.scoring.remote.post", lambda *arguments: json.dumps({"scores": scores}).encode())
    with pytest.raises(PQMError, match=r"/score: .*; is this `pqm-fast serve`\?"):
        RemoteScorer("http://127.0.0.1:1").score([("w3", ["w4", "w5"])])


def test_a_conversation_of_another_form_and_another_aggregate(tmp_path):
    folder = checkpoint(tmp_path, chat=False)
    with running(
        config(folder, conversation="Q: {prompt}\nA: {solution}", aggregate="last", text_separator="\n")
    ) as other:
        scores = RemoteScorer(other.url).score([(QUESTION, SOLUTIONS[1])])[0]
        answer = post(other, "/classify", {"input": f"Q: {QUESTION}\nA: w6 w7\nw11\nw12 w13<eos>"}).json()
        assert answer["data"][0]["probs"] == [pytest.approx(1 / (1 + math.exp(-scores[-1])), abs=1e-5)]
        assert error(post(other, "/classify", {"input": "Q: w3 A: w4"})) == (400, "unknown_conversation")
    with running(config(folder)) as without:  # the tokenizer has no chat template
        answer = post(without, "/classify", {"input": "w3"})
        assert error(answer) == (400, "unknown_conversation")
        assert "no chat template" in answer.json()["error"]["message"]
        assert post(without, "/score", {"question": "w3", "solutions": [["w4"]]}).ok


def test_a_model_without_a_step_token(tmp_path):
    with running(config(checkpoint(tmp_path, step_token="last"))) as other:
        assert post(other, "/score", {"question": "w3", "solutions": [["w4", "w5"]]}).ok
        assert error(post(other, "/pooling", {"input": [3, 4]})) == (400, "no_step_token")


def test_health_and_metrics(server, monkeypatch):
    assert requests.get(f"{server.url}/health", timeout=10).json() == {"status": "ok", "model": "run"}
    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.serve.batcher.Batcher.alive", False)
        assert error(requests.get(f"{server.url}/health", timeout=10)) == (500, "not_scoring")
    before = _metrics(server)
    post(server, "/score", {"question": QUESTION, "solutions": SOLUTIONS})
    post(server, "/score", {"question": QUESTION})
    requests.get(f"{server.url}/no-such-path-{id(before)}", timeout=10)
    after = _metrics(server)

    def more(name):
        return after.get(name, 0) - before.get(name, 0)

    assert more('pqm_fast_requests_total{code="200",path="/score"}') == 1
    assert more('pqm_fast_requests_total{code="400",path="/score"}') == 1
    assert more('pqm_fast_requests_total{code="404",path="(unknown)"}') == 1
    assert more("pqm_fast_solutions_total") == 3
    assert more("pqm_fast_batches_total") == 1
    assert more("pqm_fast_tokens_total") == 26  # three times 3 of the question, 11 of steps, 6 step tokens
    assert after["pqm_fast_requests_in_progress"] == 1  # this one


def _metrics(server):
    lines = requests.get(f"{server.url}/metrics", timeout=10).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def _record(steps):
    from pqm_fast.data.records import Record

    return Record("r", QUESTION, steps)
