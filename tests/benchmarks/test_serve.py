"""The load benchmark of the reward server: every answer is counted, compared and timed."""

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import tiny
import torch
from pqm_benchmarks.__main__ import main
from pqm_benchmarks.serve import run as serve
from pqm_benchmarks.serve.load import send

from pqm_fast.data.encode import Template
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    model = StepQModel.from_pretrained(str(tiny.model_folder(folder / "base")))
    tokenizer = tiny.tokenizer(90)
    model.fit_vocabulary(tokenizer, "<|step|>")
    model.save(folder / "run", tokenizer, Recipe(Template()), torch.float32)
    data = tiny.write_data(folder / "data.jsonl", count=24, questions=6)
    return ["serve", "--model", str(folder / "run"), "--data", data, "--device", "cpu"]


@pytest.mark.processes
def test_every_answer_is_counted_and_compared(options, tmp_path, capsys, monkeypatch):
    more = ["--requests", "30", "--clients", "8", "--alone", "4", "--solutions", "3", "--out", str(tmp_path / "r.json")]
    assert main([*options, *more]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["distinct_requests"] == 12  # 6 questions with 4 solutions, in requests of 3 and 1
    assert results["config"]["model"] == "run"
    assert results["largest_difference"] < 1e-4
    alone, together = results["phases"]["one at a time"], results["phases"]["8 clients"]
    assert (alone["requests"], alone["clients"], alone["lost"]) == (4, 1, 0)
    assert (together["requests"], together["clients"], together["lost"]) == (30, 8, 0)
    assert 0 < together["median_s"] <= together["p95_s"] <= together["p99_s"] <= together["longest_s"]
    assert 1 <= results["requests_per_batch"] <= 30
    assert serve.table(results) in capsys.readouterr().out


def test_wrong_answers_are_found(options, monkeypatch):
    bodies = [{"question": "w3", "solutions": [["w4", "w5"]]}]
    config = serve.ServeBench(options[2], ("data",), device="cpu")
    scorer = serve.Scorer.from_pretrained(options[2], device="cpu", dtype="float32")
    right = scorer.score([("w3", ["w4", "w5"])])
    load = serve.Load(1.0, [1.0], [{"scores": right}])
    assert serve._check(config, bodies, bodies, [load]) < 1e-5
    wrong = serve.Load(1.0, [1.0], [{"scores": [[right[0][0], right[0][1] + 0.01]]}])
    with pytest.raises(serve.PQMError, match=r"differs from Scorer by 0\.01"):
        serve._check(config, bodies, bodies, [load, wrong])


@pytest.mark.parametrize("name", ["solutions", "requests", "clients", "alone"])
def test_options(name):
    with pytest.raises(serve.PQMError, match=f"{name}: 0"):
        serve.ServeBench("m", ("d",), **{name: 0})


def test_lost_answers_are_counted():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if body == b"2":
                self.connection.close()  # without an answer
                return
            self.send_response(500 if body == b"1" else 200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    load = send(f"http://127.0.0.1:{server.server_port}", [b"0", b"1", b"2", b"3"], clients=2)
    server.shutdown()
    server.server_close()
    assert [answer is None for answer in load.answers] == [False, True, True, False]
    assert sorted(failure[:10] for failure in load.failures) == ["request 1:", "request 2:"]
    with pytest.raises(serve.PQMError, match=r"2 requests were lost, the first: request [12]"):
        serve._check(serve.ServeBench("m", ("d",)), [], [], [load])


def test_the_page_has_the_stored_measurement():
    page = (ROOT / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")
    stored = json.loads((ROOT / "benchmarks" / "results" / "serve-cpu.json").read_text(encoding="utf-8"))
    shown = re.search(r"<!-- serve-load -->\n(.*)<!-- /serve-load -->", page, re.DOTALL)[1]
    assert f"```text\n{serve.table(stored)}\n```\n" in shown
