"""`pqm-fast search` on files: the pool, its tokens, what evaluate makes of it, interruptions, bad input."""

import json
import os
import signal
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import numpy as np
import pytest
import tiny
import torch
from openai_server import completed, llama_cpp, vllm
from part_file import rows_in
from rank_processes import exit_codes, start_ranks
from transformers import AutoModelForCausalLM
from worlds import questions, rows_of, sample, with_the_fields_of_a_pool, write

from pqm_fast.arithmetic.models import write_model
from pqm_fast.arithmetic.problems import step_labels
from pqm_fast.cli import main
from pqm_fast.data.encode import Template
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.model.tokenizer import load_tokenizer
from pqm_fast.ranks.group import ALONE
from pqm_fast.sample.arithmetic_policy import ArithmeticPolicy, parse_problem, parse_step
from pqm_fast.sample.local_policy import LocalPolicy
from pqm_fast.sample.options import PolicyOptions
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.search.options import SearchConfig
from pqm_fast.search.run import search as run_search


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model with random weights and a random head, for the arithmetic world."""
    folder = tmp_path_factory.mktemp("model")
    write_model(folder / "empty")
    torch.manual_seed(0)
    made = StepQModel.from_pretrained(str(folder / "empty"), device=torch.device("cpu"))
    torch.nn.init.normal_(made.head.weight)
    made.save(folder / "run", load_tokenizer(str(folder / "empty")), Recipe(Template(step_token="last")))
    return folder / "run"


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "questions.jsonl", questions(7))


class Knowing:
    """Scores a step of the arithmetic world by whether it is right."""

    def score(self, solutions, *, lenient=False):
        scores = []
        for question, steps in solutions:
            parsed = [parse_step(step) for step in steps]
            scores.append([4.0 if right else -4.0 for right in step_labels(parse_problem(question), parsed)])
        return scores


@pytest.fixture
def knowing(monkeypatch):
    monkeypatch.setattr("pqm_fast.search.run.open_scorer", lambda *arguments, **options: Knowing())


def search(data, out, model, policy="arithmetic:careless", **options):
    options = {"device": "cpu", "n": 8, "beam_width": 4, "together": 3} | options
    named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if not isinstance(value, bool)]
    named += [f"--{name.replace('_', '-')}" for name, value in options.items() if value is True]
    chosen = ["--policy", policy, "--model", str(model), "--data", str(data), "--out", str(out)]
    return main(["search", *chosen, *named, *([] if options.get("progress") else ["--no-progress"])])


@pytest.mark.parametrize("method", ["beam", "dvts"])
def test_pool_of_a_search_and_of_as_many_tokens(model, data, tmp_path, monkeypatch, knowing, method):
    written = []
    complete = ArithmeticPolicy._complete

    def counted(self, request):
        completion = complete(self, request)
        written.append((request.question, request.one_step, completion.tokens))
        return completion

    monkeypatch.setattr(ArithmeticPolicy, "_complete", counted)
    out = tmp_path / "pool.jsonl"
    result = tmp_path / "result.json"
    assert search(data, out, model, method=method, compare=True, result=result) == 0
    rows = rows_of(out)
    assert [{k: row[k] for k in ("id", "question", "answer")} for row in rows] == questions(7)
    found = json.loads(result.read_text())
    for row in rows:
        for name, one_step in ((method, True), ("samples", False)):
            tokens = [t for question, step, t in written if (question, step) == (row["question"], one_step)]
            assert row["tokens_written"][name] == sum(tokens)
            of_method = [r for r in row["responses"] if r["method"] == name]
            assert {r["model_name"] for r in of_method} == {"careless" if name == "samples" else f"careless {name}"}
            assert [r["sample"] for r in of_method] == list(range(len(of_method)))
            assert len(of_method) >= 4
            for response in of_method:
                # five steps of four words, each with a line break or the end
                assert (response["tokens"], response["finish_reason"]) == (5 * len(response["steps"]), "stop")
                assert response["scores"] == Knowing().score([(row["question"], response["steps"])])[0]
        searched, samples = row["tokens_written"][method], row["tokens_written"]["samples"]
        assert searched == 8 * 25  # all solutions have five steps
        assert samples >= searched > samples - 25
    # a model that knows finds the right step wherever one is written
    best, samples = found["methods"][method], found["methods"]["samples"]
    assert best["best"]["mean"] == 1.0 > samples["best"]["mean"] > samples["mean_accuracy"]["mean"]
    assert (best["tokens"], best["solutions"]) == (200, 8)
    assert main(["evaluate", "--data", str(out), "--out", str(tmp_path / "evaluation.json"), "--n", "8"]) == 0
    evaluated = json.loads((tmp_path / "evaluation.json").read_text())["policies"]
    assert set(evaluated) == {"careless", f"careless {method}"}
    for name, key in (("careless", "samples"), (f"careless {method}", method)):
        assert evaluated[name]["candidates"] == sum(r["method"] == key for row in rows for r in row["responses"])
        if key == "samples":
            assert evaluated[name]["best_of_n"]["min"]["8"]["mean"] == found["methods"][key]["best"]["mean"]
            assert evaluated[name]["majority_vote"]["mean"] == found["methods"][key]["majority_vote"]["mean"]


def test_samples_are_those_of_sample(model, data, tmp_path, knowing):
    """Whatever the file says of earlier solutions."""
    write(data, list(map(with_the_fields_of_a_pool, questions(7))))
    assert search(data, tmp_path / "pool.jsonl", model, compare=True, seed=5) == 0
    assert sample(data, tmp_path / "sampled.jsonl", "arithmetic:careless", n=8, seed=5) == 0
    for row, sampled in zip(rows_of(tmp_path / "pool.jsonl"), rows_of(tmp_path / "sampled.jsonl"), strict=True):
        assert (row["level"], row["scored_by"], "correct" in row) == (5, str(model), False)
        mine = [r["steps"] for r in row["responses"] if r["method"] == "samples"]
        assert mine == [r["steps"] for r in sampled["responses"]]


def test_steps_beyond_the_context_of_the_model(model, data, tmp_path, monkeypatch, capfd):
    """It takes 25 tokens here: of the question and five steps, the last has no score. Such solutions are kept."""
    scorer = Scorer.from_pretrained(model, device="cpu", prefix_tree=True, max_length=30)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pqm_fast.search.run.open_scorer", lambda *arguments, **options: scorer)
    assert search(data, tmp_path / "out", model) == 0
    responses = [response for row in rows_of(tmp_path / "out") for response in row["responses"]]
    assert {(len(r["steps"]), r["scores"][-1], r["finish_reason"]) for r in responses} == {(5, None, "stop")}
    assert all(None not in r["scores"][:4] for r in responses)
    assert "56 solutions without a score" in capfd.readouterr().out
    assert main(["evaluate", "--data", str(tmp_path / "out")]) == 0


def test_seeds(model, data, tmp_path, knowing, capfd):
    """The bar shows the rounds: seven questions in groups of three, with eight continuations each."""
    assert search(data, tmp_path / "shown", model, progress=True, compare=True) == 0
    shown = capfd.readouterr().err
    for text in ("search, round 5: 24 to write", "samples, round 1: 3 to write", "search, round 1: 8 to write", "7/7"):
        assert text in shown
    for seed in (0, 0, 1):
        assert search(data, tmp_path / "out", model, seed=seed) == 0
        (tmp_path / "out").rename(tmp_path / f"out{len(list(tmp_path.glob('out*')))}")
    assert (tmp_path / "out1").read_bytes() == (tmp_path / "out2").read_bytes()
    assert (tmp_path / "out1").read_bytes() != (tmp_path / "out3").read_bytes()


@pytest.mark.parametrize("method", ["beam", "dvts"])
def test_every_budget_has_an_answer(model, data, tmp_path, monkeypatch, knowing, method):
    """All solutions have 25 tokens, and five steps. There are two at least, and the limit is exceeded by the end of one
    at most. An interrupted search goes on in the same way."""
    complete = ArithmeticPolicy._complete
    for budget, least in ((8, 50), (25, 50), (60, 50), (100, 95), (160, 155), (999, 225)):
        options = {"method": method, "budget_tokens": budget}
        out = tmp_path / f"out-{budget}"
        assert search(data, out, model, **options) == 0
        for row in rows_of(out):
            ends = [response["finish_reason"] for response in row["responses"]]
            assert least <= row["tokens_written"][method] <= max(budget, 50)
            assert ends.count("stop") >= max(2, least // 30)
    for calls in (5, 30):
        done = []

        def killed(self, request, done=done, calls=calls):
            done.append(request)
            if len(done) > calls:
                raise KeyboardInterrupt
            return complete(self, request)

        with monkeypatch.context() as patch:
            patch.setattr(ArithmeticPolicy, "_complete", killed)
            assert search(data, tmp_path / "resumed", model, method=method, budget_tokens=60) == 130
        assert search(data, tmp_path / "resumed", model, method=method, budget_tokens=60) == 0
        assert (tmp_path / "resumed").read_bytes() == (tmp_path / "out-60").read_bytes()
        (tmp_path / "resumed").unlink()


@pytest.mark.parametrize("max_steps", [1, 3])
def test_the_last_round_writes_whole_solutions(model, data, tmp_path, knowing, max_steps):
    assert search(data, tmp_path / "out", model, max_steps=max_steps) == 0
    for row in rows_of(tmp_path / "out"):
        assert [(r["finish_reason"], len(r["steps"])) for r in row["responses"]] == [("stop", 5)] * 8
        assert all(r["scores"] == Knowing().score([(row["question"], r["steps"])])[0] for r in row["responses"])


class Killed(BaseException):
    """As abrupt as a test can be."""


@pytest.mark.parametrize(
    ("method", "calls", "lost"),
    [
        ("beam", 0, 0),
        ("beam", 20, 0),  # in a round
        ("beam", 24, 30),  # before the scores of the first round
        ("beam", 25, 30),  # after them: they are lost
        ("beam", 200, 0),  # in the second group
        ("dvts", 75, 30),
        ("dvts", 310, 0),
    ],
)
def test_an_interrupted_search_ends_as_if_it_had_not_been(model, data, tmp_path, monkeypatch, method, calls, lost):
    """The journal may lose the end of its last line. With a real model, whose scores depend on the batch by rounding:
    the same bytes."""
    scorer = Scorer.from_pretrained(model, device="cpu", prefix_tree=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pqm_fast.search.run.open_scorer", lambda *arguments, **options: scorer)
    whole, out, part = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "out.jsonl.part"
    options = {"compare": True, "method": method}
    assert search(data, whole, model, **options) == 0
    done = []
    originals = {ArithmeticPolicy: ArithmeticPolicy._complete, Scorer: Scorer.score}

    def counted(kind):
        def call(self, argument, **options):
            done.append(kind)
            if len(done) == calls + 1:
                raise Killed
            return originals[kind](self, argument, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(ArithmeticPolicy, "_complete", counted(ArithmeticPolicy))
        patch.setattr(Scorer, "score", counted(Scorer))
        with pytest.raises(Killed):
            search(data, out, model, **options)
    kept = rows_in(part) if part.exists() else 0
    assert (kept > 0) == (calls > 0)
    if kept:
        os.truncate(part, part.stat().st_size - lost)
    asked = []
    monkeypatch.setattr(
        ArithmeticPolicy, "_complete", lambda self, r: asked.append(r) or originals[ArithmeticPolicy](self, r)
    )
    assert search(data, out, model, **options) == 0
    assert out.read_bytes() == whole.read_bytes()
    lost_completions = int(lost > 0 and done[calls - 1] is ArithmeticPolicy)
    assert len(asked) == 7 * (8 * 5 + 8) - done[:calls].count(ArithmeticPolicy) + lost_completions
    assert not list(tmp_path.glob("*.part*"))


def test_another_search_does_not_resume_this_one(model, data, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        patch.setattr("pqm_fast.search.run._row", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        assert search(data, tmp_path / "out", model) == 130
    for change, name in (
        ({"beam_width": 2}, "beam_width (4 then, 2 now)"),
        ({"method": "dvts"}, "method"),
        ({"compare": True}, "compare"),
    ):
        assert search(data, tmp_path / "out", model, **change) == 1
        assert f"was started with other options: {name}" in capfd.readouterr().err
    assert search(data, tmp_path / "out", model) == 0
    assert search(data, tmp_path / "out", model) == 1
    assert "out: exists already" in capfd.readouterr().err


@pytest.mark.fault(
    "a rank of `search` is killed; the command continues on fewer",
    how="`kill -9` in the middle of a round",
    lost="the steps under way",
    recovers="the same command reads the journals of all ranks and asks for no step twice; the file is as of one rank, "
    "up to the rounding of scores",
)
def test_any_number_of_ranks_writes_the_same(model, data, tmp_path, knowing, capsys, monkeypatch):
    config = SearchConfig(
        policy="arithmetic:careless",
        model=str(model),
        data=(str(data),),
        out=str(tmp_path / "alone"),
        compare=True,
        writing=PolicyOptions(device="cpu"),
        progress=False,
    )

    def run(out, ranks):
        return run_search(SearchConfig(**{**vars(config), "out": str(tmp_path / out)}), ranks)

    run("alone", ALONE)
    said = capsys.readouterr().out
    assert exit_codes(start_ranks(2, lambda ranks: run("together", ranks), tmp_path)) == [0, 0]
    assert (tmp_path / "together").read_bytes() == (tmp_path / "alone").read_bytes()
    assert [(tmp_path / f"said-{rank}").read_text() for rank in range(2)] == [said, ""]

    asked, original = [], ArithmeticPolicy._complete

    def killed(ranks):
        def complete(self, request):
            asked.append(request)
            if ranks.rank == 1 and len(asked) == 50:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self, request)

        monkeypatch.setattr(ArithmeticPolicy, "_complete", complete)
        run("killed", ranks)

    assert exit_codes(start_ranks(2, killed, tmp_path)) == [1, -9]
    kept = [json.loads(line.rpartition(b"\t")[0]) for part in tmp_path.glob("killed.part*") for line in part.open("rb")]
    monkeypatch.setattr(ArithmeticPolicy, "_complete", lambda self, r: asked.append(r) or original(self, r))
    run("killed", ALONE)
    assert (tmp_path / "killed").read_bytes() == (tmp_path / "alone").read_bytes()
    assert len(asked) == 7 * (16 * 5 + 16) - sum("completion" in row for row in kept)


def test_questions_that_are_refused_and_unanswered(model, data, tmp_path, knowing, capfd):
    rows = [*questions(2), {"question": "What is 5 - 2?"}, {"id": "open", "question": questions(3)[2]["question"]}]
    mixed = write(tmp_path / "mixed.jsonl", rows)
    assert search(mixed, tmp_path / "out", model) == 1
    assert "question mixed:3: 'What is 5 - 2?' is not from the arithmetic world" in (error := capfd.readouterr().err)
    assert "--skip-refused leaves such questions out" in error
    assert search(mixed, tmp_path / "out", model, skip_refused=True, result=tmp_path / "result.json") == 0
    assert "left out 1 question that was refused, for example: question mixed:3" in capfd.readouterr().out
    assert [row["id"] for row in rows_of(tmp_path / "out")] == ["q0", "q1", "open"]
    found = json.loads((tmp_path / "result.json").read_text())["methods"]["beam"]
    assert (found["questions"], found["best"]["questions"]) == (3, 2)
    unanswered = write(tmp_path / "unanswered.jsonl", rows[3:])
    assert search(unanswered, tmp_path / "out2", model) == 0
    assert "beam  1 " in (printed := capfd.readouterr().out)
    assert "-" in printed
    foreign = write(tmp_path / "foreign.jsonl", rows[2:3])
    assert search(foreign, tmp_path / "out3", model, skip_refused=True) == 1
    assert "no question could be taken" in capfd.readouterr().err


def test_bad_input(model, data, tmp_path, capfd):
    (tmp_path / "link").symlink_to(data)
    (tmp_path / "x").mkdir()
    for options, said in (
        ({"n": 6}, "n: 6 is not a multiple of beam_width, 4"),
        ({"budget_tokens": 0}, "budget_tokens: 0 was given"),
        ({"policy": "arithmetic:nobody"}, "arithmetic:nobody: choose one of"),
        ({"result": tmp_path}, "is a folder; name a file to write"),
        ({"result": data}, "is a file of --data, which it would replace"),
        ({"result": tmp_path / "out"}, "is the file of --out, or its journal"),
        ({"result": tmp_path / "x" / ".." / "out.part"}, "is the file of --out, or its journal"),
        ({"result": tmp_path / "link"}, "is a file of --data, which it would replace"),
        ({"policy": "http://127.0.0.1:9/v1"}, "name a server and its model"),
    ):
        assert search(data, tmp_path / "out", model, **options) == 1
        assert said in capfd.readouterr().err
    assert search(data, tmp_path / "out", tmp_path / "nothing") == 1
    assert "nothing" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert rows_of(data) == questions(7)


# ---- policies that are models ---------------------------------------------------------------------------------------


class ByLength:
    """Prefers short steps; counts calls."""

    def __init__(self):
        self.calls = 0

    def score(self, solutions, *, lenient=False):
        self.calls += 1
        return [[-float(len(step)) for step in steps] for _, steps in solutions]


def test_a_local_model(tmp_path, monkeypatch, model):
    """It ends one token in 30 or so, and its context holds 128: steps are words up to the most frequent one."""
    folder = tiny.model_folder(tmp_path / "policy", num_hidden_layers=2)
    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(tiny.config("llama", num_hidden_layers=2, initializer_range=0.3))
    with torch.no_grad():
        network.lm_head.weight[1] *= 2.0
    network.save_pretrained(folder)
    data = write(tmp_path / "q.jsonl", [{"id": f"q{i}", "prompt": " ".join(["w3"] * (1 + i))} for i in range(3)])
    scorer = ByLength()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pqm_fast.search.run.open_scorer", lambda *arguments, **options: scorer)
    options = {
        "policy": "policy",
        "step_separator": " ",
        "max_new_tokens": 20,
        "n": 4,
        "beam_width": 2,
        "max_steps": 9,
    }
    for parallel in (64, 3):
        out = tmp_path / f"out{parallel}"
        assert search(data, out, model, parallel=parallel, compare=True, **options) == 0
    assert (tmp_path / "out64").read_bytes() == (tmp_path / "out3").read_bytes()
    ends = set()
    for row in rows_of(tmp_path / "out64"):
        for response in row["responses"]:
            ends.add((response["method"], response["finish_reason"]))
            assert response["tokens"] <= 20  # --max-new-tokens limits a whole solution of both
            assert all(" " not in step for step in response["steps"])
            assert (response["scores"][-1] is None) == (response["finish_reason"] == "length")
    assert {("beam", "length"), ("samples", "stop"), ("samples", "length")} <= ends
    generate, batches = LocalPolicy._generate, []

    def interrupted(self, batch):
        batches.append(len(batch))
        if len(batches) == 5:
            raise KeyboardInterrupt
        return generate(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(LocalPolicy, "_generate", interrupted)
        assert search(data, tmp_path / "resumed", model, parallel=5, compare=True, **options) == 130
    assert rows_in(tmp_path / "resumed.part") > 10
    assert search(data, tmp_path / "resumed", model, parallel=5, compare=True, **options) == 0
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "out64").read_bytes()
    # the context holds 120 new tokens of a solution, whatever the number of its steps
    assert search(data, tmp_path / "full", model, **(options | {"max_new_tokens": 120, "max_steps": 40})) == 0
    responses = [response for row in rows_of(tmp_path / "full") for response in row["responses"]]
    assert max(len(response["steps"]) for response in responses) > 8
    assert {response["finish_reason"] for response in responses} == {"stop", "length"}


@pytest.mark.parametrize("answer", [vllm, llama_cpp])
def test_a_server(serve, data, tmp_path, knowing, model, answer):
    """One request for a step; a server that does not say what ended it is asked for one token more."""
    server = serve(answer)
    assert search(data, tmp_path / "out", model, policy=server.policy, n=4, beam_width=2, together=2) == 0
    stepwise = [body for body in server.seen if "stop" in body]
    assert len(stepwise) == 7 * 4 * 5
    for body in stepwise:  # a solution may have 1024 tokens, and its steps have had five each, or six with the question
        steps = len(body["prompt"].removesuffix("\n").split("\n")) - 1
        assert body["max_tokens"] == 1024 - steps * (6 if answer is llama_cpp else 5)
    assert len(server.seen) == len(stepwise) * (2 if answer is llama_cpp else 1)
    assert max(server.attempts.values()) == 1 or answer is llama_cpp  # equal texts may be asked about twice
    rows = rows_of(tmp_path / "out")
    expected = 4 * 25 + (4 * 5 if answer is llama_cpp else 0)
    assert [row["tokens_written"] for row in rows] == [{"beam": expected}] * 7
    assert all(len(r["steps"]) == 5 for row in rows for r in row["responses"])
    texts = {(body["prompt"].split("\n")[0], completed(body).text) for body in stepwise}
    assert {(row["question"], step) for row in rows for r in row["responses"] for step in r["steps"]} <= texts


class ScoreServer(BaseHTTPRequestHandler):
    """Answers as `pqm-fast serve` does: minus the length of a step."""

    seen: ClassVar[list[dict]] = []
    unreadable = refuses = False

    def log_message(self, *arguments):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(body | {"path": self.path})
        answer = {"scores": [[-float(len(step)) for step in steps] for steps in body["solutions"]]}
        if not body["lenient"] or self.refuses:
            answer = {"error": {"message": "no model here", "code": "broken_model"}}
        elif self.unreadable:
            answer = {"scores": [[None] * len(steps) for steps in body["solutions"]]}
        text = json.dumps(answer).encode()
        self.send_response(200 if "scores" in answer else 500)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def test_a_model_behind_a_server(data, tmp_path, monkeypatch, capfd):
    """All continuations of a question in one request; the result is that of the same model here."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), ScoreServer)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    url = f"http://ann:secret@127.0.0.1:{server.server_address[1]}"
    try:
        assert search(data, tmp_path / "out", url) == 0
        requests = len(ScoreServer.seen)
        monkeypatch.setattr(ScoreServer, "unreadable", True)  # every question holds the step token
        assert search(data, tmp_path / "unreadable", url) == 1
        assert "question q0: the model cannot read it" in capfd.readouterr().err
        assert search(data, tmp_path / "unreadable", url, skip_refused=True) == 1
        assert "no question could be taken, the last: question q6: the model cannot" in capfd.readouterr().err
        (tmp_path / "unreadable.part").unlink()
        monkeypatch.setattr(ScoreServer, "refuses", True)
        assert search(data, tmp_path / "other", url) == 1
        assert f"127.0.0.1:{server.server_address[1]}/score: no model here" in capfd.readouterr().err
        (tmp_path / "other.part").unlink()
    finally:
        server.shutdown()
        server.server_close()
    assert requests == 7 * 5  # five rounds
    assert {body["path"] for body in ScoreServer.seen} == {"/score"}
    monkeypatch.setattr("pqm_fast.search.run.open_scorer", lambda *arguments, **options: ByLength())
    assert search(data, tmp_path / "here", "http://127.0.0.1:1") == 0
    there, here = rows_of(tmp_path / "out"), rows_of(tmp_path / "here")
    assert [row["responses"] for row in there] == [row["responses"] for row in here]
    assert "secret" not in (tmp_path / "out").read_text()
    assert search(data, tmp_path / "other", url, preset="trl") == 1
    assert "leave out --preset" in capfd.readouterr().err


def test_figures_by_hand(tmp_path, capsys):
    """Two questions of three solutions. The scores choose a right one in the first; the votes are all wrong."""
    from pqm_fast.search.figures import figures, paired_difference, shown_difference, table

    def response(method, answer, *scores, end="stop"):
        named = {"model_name": method, "method": method, "finish_reason": end, "scores": scores}
        return {"steps": [*["go on"] * (len(scores) - 1), f"A: {answer}"], **named}

    rows = [
        {
            "question": "P",
            "answer": "1",
            "tokens_written": {"beam": 10, "samples": 14},
            "responses": [
                response("beam", 1, 5, 3),
                response("beam", 2, -1, 4),
                response("beam", 2, 2),
                response("samples", 2, 5),
                response("samples", 1, 4),
            ],
        },
        {
            "question": "Q",
            "answer": "1",
            "tokens_written": {"beam": 30, "samples": 30},
            "responses": [
                response("beam", 1, 5, None, end="length"),
                response("beam", 2, 0),
                response("beam", 1, -20.0),
                response("samples", 2, -30.0),
            ],
        },
    ]
    found = figures(write(tmp_path / "pool.jsonl", rows), "min")
    beam, samples = found["methods"]["beam"], found["methods"]["samples"]
    assert (beam["questions"], beam["solutions"], beam["tokens"]) == (2, 3.0, 20.0)
    assert (samples["solutions"], samples["tokens"]) == (1.5, 22.0)
    assert found["by_question"] == {"beam": [1.0, 0.0], "samples": [0.0, 0.0]}
    by_last = figures(tmp_path / "pool.jsonl", "last")["by_question"]
    assert by_last == {"beam": [0.0, 0.0], "samples": [0.0, 0.0]}  # of the first, the wrong one with 4
    assert [beam[name]["mean"] for name in ("best", "any_right")] == [0.5, 1.0]
    # of the first, 2 has two votes of three, and the weights s(-1) + s(2) = 1.15 against s(3) = 0.95; of the second, 1
    # has one vote (the other was cut off) as 2 has, so they share it, and hardly any weight
    assert beam["majority_vote"]["mean"] == pytest.approx(0.25)
    assert beam["weighted_vote"]["mean"] == 0.0
    assert beam["mean_accuracy"]["mean"] == pytest.approx((1 / 3 + 1 / 3) / 2)
    assert found["difference"]["mean"] == 0.5
    difference = paired_difference(np.array([1.0, 0.0, 0.0, 1.0, 1.0]))
    assert difference["mean"] == pytest.approx(0.6)
    half = 1.959964 * ((3 * 0.4**2 + 2 * 0.6**2) / 4 / 5) ** 0.5
    assert (difference["low"], difference["high"]) == pytest.approx((0.6 - half, 0.6 + half))
    for equal in ([1.0], [0.25] * 3):  # nothing is known of their spread
        assert paired_difference(np.array(equal)) == {"mean": equal[0], "low": None, "high": None}
    assert shown_difference(paired_difference(np.array([-0.5] * 2))) == "-0.500"
    assert "best by min" in table(found)
    assert (beam["cut_off"], beam["unscored"], samples["cut_off"]) == (1, 0, 0)
    assert "\n1 solution cut off (by --budget-tokens" in table(found)
    assert "without a score" not in table(found)
    assert "best, search minus plain samples: +0.500 [-0.480, +1.480]" in table(found)
