"""A server that fails in every way, over real HTTP: nothing is lost, and nothing is requested again without need."""

import json
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from hashlib import blake2b

import pytest
from openai_server import FAULTS, completed, llama_cpp, sglang, solve, vllm
from part_file import rows_in
from worlds import annotate, questions, rows_of, sample, write

from pqm_fast.data.step_text import split_steps
from pqm_fast.errors import PQMError
from pqm_fast.sample import server_policy
from pqm_fast.sample.open_policy import open_policy
from pqm_fast.sample.options import PolicyOptions
from pqm_fast.sample.policy import Completion, Request


@pytest.fixture
def data(tmp_path):
    return write(tmp_path / "questions.jsonl", questions(6))


def pick(body, attempt: int) -> int:
    """A number from 0 to 255 that depends on the request and the attempt alone."""
    return blake2b(f"{json.dumps(body)} {attempt}".encode(), digest_size=1).digest()[0]


def ask(policy: str, waits: list[float] | None = None, **options):
    """The outcome of one request. With `waits`, the times between tries are appended to it instead of waited."""
    opened = open_policy(policy, PolicyOptions(**options))
    if waits is not None:
        opened.closed.wait = lambda seconds: waits.append(seconds)
    try:
        opened.submit(Request("1 a +1", (), 1, None))
        [(_, outcome)] = opened.collect()
    finally:
        opened.close()
    return outcome


def test_sampling_asks_for_each_solution_once(serve, data, tmp_path):
    server = serve()
    assert sample(data, tmp_path / "pool.jsonl", server.policy, n=5, seed=7, temperature=0.6, max_new_tokens=99) == 0
    assert len(server.seen) == 30
    assert set(server.served.values()) == {1}
    assert {b["prompt"] for b in server.seen} == {row["question"] + "\n" for row in rows_of(data)}
    assert len({b["seed"] for b in server.seen}) == 30
    shared = {"model": "careless", "temperature": 0.6, "max_tokens": 99, "top_p": 1.0}
    assert all(shared.items() <= body.items() and "stop" not in body for body in server.seen)
    by_prompt = {b["prompt"]: [] for b in server.seen}
    for body in server.seen:
        by_prompt[body["prompt"]].append(solve(body).split("\n"))
    for question, row in zip(questions(6), rows_of(tmp_path / "pool.jsonl"), strict=True):
        assert {k: row[k] for k in ("id", "question", "answer")} == question
        assert [(r["model_name"], r["sample"], r["finish_reason"]) for r in row["responses"]] == [
            ("careless", s, "stop") for s in range(5)
        ]
        assert sorted(r["steps"] for r in row["responses"]) == sorted(by_prompt[row["question"] + "\n"])


def test_every_fault_is_overcome_by_trying_again(serve, data, tmp_path):
    """Two of three attempts fail, in every way. The result is that of a server without faults."""
    good, bad = serve(), serve()
    assert sample(data, tmp_path / "good.jsonl", good.policy, n=16) == 0
    happened = set()

    def fault(body, attempt):
        kind = FAULTS[pick(body, attempt) % len(FAULTS)] if attempt < 6 and pick(body, attempt) < 170 else None
        happened.add(kind)
        return kind

    bad.fault = fault
    assert sample(data, tmp_path / "bad.jsonl", bad.policy, n=16, timeout=0.5, parallel=24) == 0
    assert happened == {None, *FAULTS}
    assert (tmp_path / "bad.jsonl").read_bytes() == (tmp_path / "good.jsonl").read_bytes()
    assert bad.served == good.served  # each request answered once, although many were tried several times
    assert len(bad.seen) > 1.5 * len(good.seen)
    assert not list(tmp_path.glob("*.part*"))


@pytest.mark.fault(
    "a server fails, or is hostile",
    how="a real server on the loopback that is late; that drops, cuts or garbles its reply; that sends it a byte at a "
    "time or without end; that nests JSON 200,000 deep",
    lost="nothing",
    recovers="the whole reply has a time limit and a limit of 64 MiB; the request is tried again",
)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(serve, fault):
    server = serve()
    server.late = 1.0
    server.fault = lambda body, attempt: fault if attempt < 2 else None
    assert ask(server.policy, timeout=0.3) == Completion(solve(server.seen[0]), True)
    assert len(server.seen) == 3


def test_requests_in_flight_are_bounded_and_at_the_bound(serve, data, tmp_path):
    server = serve()
    server.delay = 0.05
    assert sample(data, tmp_path / "pool.jsonl", server.policy, n=10, parallel=7) == 0
    assert server.most == 7


def test_the_result_does_not_depend_on_what_runs_at_once(serve, data, tmp_path):
    server = serve()
    for parallel in (1, 3, 40):
        assert sample(data, tmp_path / f"{parallel}.jsonl", server.policy, n=8, parallel=parallel) == 0
    assert len({(tmp_path / f"{parallel}.jsonl").read_bytes() for parallel in (1, 3, 40)}) == 1
    assert sample(data, tmp_path / "other.jsonl", server.policy, n=8, seed=1) == 0
    assert (tmp_path / "other.jsonl").read_bytes() != (tmp_path / "1.jsonl").read_bytes()


def test_policies_do_not_share_their_luck(serve, data, tmp_path):
    server = serve()
    url = server.policy.partition("#")[0]
    assert sample(data, tmp_path / "pool.jsonl", f"{url}#a", f"{url}#b", n=4) == 0
    seeds = {model: {b["seed"] for b in server.seen if b["model"] == model} for model in "ab"}
    assert len(seeds["a"]) == len(seeds["b"]) == 24
    assert not seeds["a"] & seeds["b"]


# ---- waiting --------------------------------------------------------------------------------------------------------


def test_waits_double_up_to_a_limit_with_jitter(serve):
    server = serve()
    server.fault = lambda body, attempt: "500" if attempt < 7 else None
    waits: list[float] = []
    ask(server.policy, waits)
    highest = [0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.6]
    assert len(waits) == 7
    assert all(high / 2 <= wait <= high for wait, high in zip(waits, highest, strict=True))
    assert len({wait / high for wait, high in zip(waits, highest, strict=True)}) == 7


def test_retry_after_is_obeyed(serve):
    """After both codes that may bring it; it is waited for once."""
    server = serve()
    server.retry_after = "1"
    server.fault = lambda body, attempt: "429" if attempt < 1 else None
    assert ask(server.policy) == Completion(solve(server.seen[0]), True)
    assert server.times[1] - server.times[0] > 0.95
    server.attempts.clear()
    server.fault = lambda body, attempt: "503" if attempt < 1 else None
    waits: list[float] = []
    assert ask(server.policy, waits) == Completion(solve(server.seen[0]), True)
    assert waits == [1]


def test_retry_after_as_a_date_and_as_nonsense(serve):
    server = serve()
    waits: list[float] = []
    server.fault = lambda body, attempt: "429" if attempt < 1 else None
    for text, low, high in [
        (formatdate(time.time() + 40, usegmt=True), 38, 41),
        (formatdate(time.time() - 40, usegmt=True), 0, 0.01),
        ("100000", 300, 300),
        ("soon", 0, 0.01),
        ("-5", 0, 0.01),
        ("", 0, 0.01),
        ("Mon, 99 Foo", 0, 0.01),
    ]:
        server.retry_after = text
        server.attempts.clear()
        ask(server.policy, waits)
        assert low <= waits[-1] <= high, text


# ---- giving up, and resuming ----------------------------------------------------------------------------------------


def test_a_server_that_stays_broken_ends_the_run_and_the_next_one_resumes(serve, data, tmp_path, capfd):
    whole, server = serve(), serve()
    assert sample(data, tmp_path / "whole.jsonl", whole.policy, n=8) == 0
    out, part = tmp_path / "pool.jsonl", tmp_path / "pool.jsonl.part"
    broken = threading.Event()

    def fault(body, attempt):
        if len(server.served) >= 20:
            broken.set()
        return "500" if broken.is_set() else None

    server.fault = fault
    capfd.readouterr()
    assert sample(data, out, server.policy, n=8, parallel=4, retries=3) == 1
    error = capfd.readouterr().err
    assert "no usable answer in 4 tries, the last: HTTP 500: " in error
    assert "because of 500" in error
    assert f"run the command again; what is done is kept in {part}" in error
    assert error.count("error:") == 1
    assert not out.exists()
    kept = rows_in(part)
    assert 0 < kept <= 24

    repaired = serve()  # the same model in another place
    assert sample(data, out, repaired.policy, n=8, parallel=4) == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert repaired.served.total() == 48 - kept
    assert not list(tmp_path.glob("pool.jsonl.part*"))


def test_annotation_resumes_too(serve, data, tmp_path, capfd):
    server = serve(lambda body: solve(body, "strong"))
    pool = tmp_path / "pool.jsonl"
    assert sample(data, pool, "arithmetic:careless", n=4) == 0
    assert annotate(pool, tmp_path / "whole.jsonl", server.policy, rollouts=3) == 0
    asked = len(server.served)
    assert set(server.served.values()) == {1}
    server = serve(lambda body: solve(body, "strong"))
    server.fault = lambda body, attempt: "cut" if len(server.served) >= 50 else None
    out = tmp_path / "out.jsonl"
    assert annotate(pool, out, server.policy, rollouts=3, retries=1, parallel=4) == 1
    assert "IncompleteRead" in capfd.readouterr().err
    kept = rows_in(tmp_path / "out.jsonl.part")
    assert 40 <= kept <= 54
    server = serve(lambda body: solve(body, "strong"))
    server.fault = lambda body, attempt: ("429", "drop", "garbage", None)[min(attempt, 3)]
    assert annotate(pool, out, server.policy, rollouts=3) == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert server.served.total() == len(server.served) == asked - kept


def test_what_was_answered_is_handed_over_before_an_error_is_raised(serve):
    policy = open_policy(serve().policy, PolicyOptions(parallel=2))
    answered = (Request("1 a +1", (), 1, None), Completion("a: 1 +1 =2", True))
    policy.in_flight = 2
    policy.done.put(PQMError("broken"))
    policy.done.put(answered)
    assert policy.collect() == [answered]
    with pytest.raises(PQMError, match="broken"):
        policy.collect()
    policy.close()


def test_no_server(data, tmp_path, capfd, monkeypatch):
    out = tmp_path / "pool.jsonl"
    waits: list[float] = []
    monkeypatch.setattr(server_policy.random, "uniform", lambda low, high: waits.append(low) or 0.0)
    assert sample(data, out, "http://127.0.0.1:9/v1#m") == 1
    assert waits == []  # no back-off: the server never answered
    error = capfd.readouterr().err
    assert "http://127.0.0.1:9/v1/completions: no server there" in error
    assert "start it, or correct the URL" in error
    assert list(tmp_path.iterdir()) == [data]


@pytest.mark.parametrize("code", ["401", "403", "404", "302"])
def test_what_trying_again_cannot_fix_ends_the_run_at_once(serve, data, tmp_path, capfd, code):
    server = serve()
    server.fault = lambda body, attempt: code
    assert sample(data, tmp_path / "pool.jsonl", server.policy, n=1, parallel=1) == 1
    assert f"HTTP {code}: " in (error := capfd.readouterr().err)
    assert f"because of {code}" in error
    assert len(server.seen) == 1


def test_a_redirect_is_not_followed(serve):
    """Otherwise the key would go to a server that the user did not name."""
    server, other = serve(), serve()
    server.fault, server.location = (lambda body, attempt: "307"), other.policy.partition("#")[0] + "/completions"
    with pytest.raises(PQMError, match="HTTP 307: "):
        ask(server.policy)
    server.fault = lambda body, attempt: "302"
    with pytest.raises(PQMError, match="HTTP 302: "):
        ask(server.policy)
    assert not other.touched


@pytest.mark.parametrize("code", ["400", "413", "422"])
def test_a_prompt_that_the_server_refuses(serve, data, tmp_path, capfd, code):
    server = serve()
    first, second, *_ = (row["question"] + "\n" for row in rows_of(data))
    server.fault = lambda body, attempt: code if body["prompt"] in (first, second) else None
    out = tmp_path / "pool.jsonl"
    assert sample(data, out, server.policy, n=3, parallel=1) == 1
    error = capfd.readouterr().err
    assert f"question q0: {server.policy.partition('#')[0]}/completions refuses it with HTTP {code}: " in error
    assert "--skip-refused leaves such questions out" in error
    assert sample(data, out, server.policy, n=3, skip_refused=True) == 0
    assert [row["id"] for row in rows_of(out)] == ["q2", "q3", "q4", "q5"]
    assert "left out 2 questions that were refused, for example: question q" in capfd.readouterr().out
    server.fault = lambda body, attempt: code
    assert sample(data, tmp_path / "none.jsonl", server.policy, n=3, skip_refused=True) == 1
    assert "no question could be taken" in capfd.readouterr().err


@pytest.mark.fault(
    "`sample` or `annotate` is asked to end (Ctrl-C, Slurm, Kubernetes) while it waits for a server",
    how="SIGINT and SIGTERM to the process while all requests hang",
    lost="the requests in flight",
    recovers="it ends at once with code 130 or 143 and says what is kept; the same command resumes from there",
)
@pytest.mark.usefixtures("sigint_taken")
@pytest.mark.parametrize(("number", "how"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_an_interrupted_command_ends_at_once(serve, data, tmp_path, number, how):
    """What was there before stays."""
    server = serve()
    server.late = 30
    server.fault = lambda body, attempt: "late" if len(server.served) >= 5 else None
    code = "import sys; from pqm_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    out = tmp_path / "pool.jsonl"
    paths = ["--policy", server.policy, "--data", data, "--out", out, "--no-progress"]
    child = subprocess.Popen(
        [sys.executable, "-c", code, "sample", *map(str, paths)], stderr=subprocess.PIPE, text=True
    )
    while len(server.seen) < 40:
        time.sleep(0.02)
        assert child.poll() is None
    time.sleep(0.2)
    child.send_signal(number)
    kept = f"what is done is kept in {out}.part, and the same command continues from there"
    assert child.communicate(timeout=10)[1] == f"pqm-fast: {how}; {kept}\n"
    assert child.returncode == 128 + number
    assert rows_in(tmp_path / "pool.jsonl.part") >= 5


# ---- what a server may say ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"text": "", "finish_reason": "stop"}, Completion("", True)),
        ({"text": "a\nb", "finish_reason": "length"}, Completion("a\nb", False)),
        ({"text": "a"}, Completion("a", True)),
        ({"text": "a", "finish_reason": "content_filter"}, Completion("a", False)),
        ({"text": "x" * 100_000, "finish_reason": "stop"}, Completion("x" * 100_000, True)),
        ({"text": "7 − 2 \u2028 = \x00 5", "finish_reason": "stop"}, Completion("7 − 2 \u2028 = \x00 5", True)),
        ({"text": "half \ud83d of it", "finish_reason": "stop"}, Completion("half \ufffd of it", True)),
        ({"text": "\ud83d\ude00", "finish_reason": "eos"}, Completion("😀", True)),
    ],
)
def test_odd_completions(serve, choice, expected):
    server = serve(lambda body: choice)
    assert ask(server.policy) == expected


@pytest.mark.parametrize("answer", [vllm, sglang, llama_cpp])
def test_one_step_at_a_time(serve, answer):
    """Whether it was the last is known from every server: from its answer, or from the token that follows."""
    server = serve(answer)
    policy = open_policy(server.policy, PolicyOptions(stop=() if answer is llama_cpp else ("Question:",)))
    for steps in ((), ("a: 7 -2 =5",)):
        earlier = len(server.seen)
        policy.submit(Request("7 a -2 b +1", steps, 5, None, one_step=True))
        [(_, completion)] = policy.collect()
        last = completed(server.seen[earlier])
        asked_on = 1 if answer is llama_cpp else 0
        assert completion == last._replace(tokens=5 + asked_on)
        assert completion.goes_on == (not steps)
    policy.close()
    if answer is llama_cpp:
        first, on, *_ = server.seen
        text = solve(first)
        assert (first["stop"], "stop" in on) == (["\n"], False)
        assert (on["prompt"], on["max_tokens"], on["temperature"]) == (first["prompt"] + text, 1, 0)
        assert len(server.seen) == 4
    else:
        assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("choice", "goes_on", "finished"),
    [
        ({"text": "a", "finish_reason": "length", "stop_reason": None}, False, False),
        ({"text": "a", "finish_reason": "stop", "stop_reason": "Question:"}, False, True),
        ({"text": "a", "finish_reason": "stop", "stop_reason": 151643}, False, True),
        ({"text": "a", "finish_reason": "stop", "matched_stop": "\n"}, True, True),
        ({"text": "a\n", "finish_reason": "stop", "stop_reason": "\n"}, True, True),  # the stop text is in the answer
        ({"text": "a\n", "finish_reason": "stop"}, True, True),
    ],
)
def test_what_ended_a_step(serve, choice, goes_on, finished):
    server = serve(lambda body: choice)
    policy = open_policy(server.policy, PolicyOptions(stop=("Question:",)))
    policy.submit(Request("Why?", (), 1, None, one_step=True))
    [(_, completion)] = policy.collect()
    policy.close()
    assert completion == Completion("a", finished, None, goes_on)


@pytest.mark.parametrize("choice", [{}, {"matched_stop": None}])
def test_stop_texts_need_a_server_that_says_which_it_was(serve, choice):
    """Without them it is asked on: "a" follows."""
    server = serve(lambda body: {"text": "a", "finish_reason": "stop", **choice})
    for stop in ((), ("Question:",)):
        policy = open_policy(server.policy, PolicyOptions(stop=stop))
        policy.submit(Request("Why?", (), 1, None, one_step=True))
        if stop:
            with pytest.raises(PQMError, match=r"does not say which stop text ended a step.*leave out --stop"):
                policy.collect()
        else:
            [(_, completion)] = policy.collect()
            assert completion == Completion("a", True, None, True)
            assert len(server.seen) == 2
        policy.close()


def test_a_text_that_fills_the_context_may_go_on(serve):
    """The server refuses the question whether it does; the request for the next step shows it."""
    server = serve(lambda body: {"text": "a", "finish_reason": "stop", "usage": 7})
    server.fault = lambda body, attempt: "400" if body["max_tokens"] == 1 else None
    policy = open_policy(server.policy, PolicyOptions())
    policy.submit(Request("Why?", (), 1, None, one_step=True))
    [(_, completion)] = policy.collect()
    policy.close()
    assert completion == Completion("a", True, 7, True)


def test_stop_key_and_header(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "of the test")
    server = serve(lambda body: "the rest")
    ask(server.policy, stop=("\n\n", "Question:"), prompt_format="Q: {prompt}\nA:\n")
    body, header = server.seen[0], server.headers[0]
    assert body["stop"] == ["\n\n", "Question:"]
    assert body["prompt"] == "Q: 1 a +1\nA:\n"
    assert header["Authorization"] == "Bearer of the test"
    monkeypatch.delenv("OPENAI_API_KEY")
    ask(server.policy)
    assert "Authorization" not in server.headers[1]


@pytest.mark.fault(
    "a server repeats the key or password that it was sent",
    how="a real server that answers 401 with the header it got, cut off and in full",
    lost="nothing",
    recovers="neither appears in the message or in a file; a key that no header can hold is refused without showing it",
)
@pytest.mark.parametrize(
    ("key", "user", "sent"),
    [
        ("sk-uvwxyzghijkl\n", "", "Bearer sk-uvwxyzghijkl"),
        (None, "ann:s%2Fcret%20word@", "Basic YW5uOnMvY3JldCB3b3Jk"),
        ("sk-uvwxyzghijkl", "ann:s%2Fcret%20word@", "Bearer sk-uvwxyzghijkl"),
        ("sk-uvw\nxyzghijkl", "", None),
        ("sk-uvwxyzghijkl", "ann:s%2Fcret%20word@no port:", None),
    ],
    ids="abcde",
)
def test_neither_key_nor_password_is_shown(serve, data, tmp_path, capfd, monkeypatch, key, user, sent):
    server = serve()
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    policy, out = server.policy.replace("//", f"//{user}"), tmp_path / "out.jsonl"
    server.fault = lambda body, attempt: "key" if len(server.served) > 3 else None
    assert sample(data, out, policy, n=3, parallel=1) == 1
    if sent is None:
        assert not server.seen
    else:
        assert {header["Authorization"] for header in server.headers} == {sent}
    shown = "".join(capfd.readouterr()) + "".join(path.read_text() for path in tmp_path.iterdir())
    assert sent is None or "no such key: B" in shown
    for secret in ("uvw", "ghijkl", "cret", "YW5u", "ann"):  # none of which a checksum in hexadecimal can hold
        assert secret not in shown
    server.fault = lambda body, attempt: None
    assert (sample(data, out, policy, n=3) == 0) == (sent is not None)
    assert "cret" not in out.read_text() if sent else not out.exists()


@pytest.mark.parametrize("fault", ["key", "key in the reason", "key in JSON"])
def test_a_key_is_hidden_however_it_is_written(serve, monkeypatch, fault):
    monkeypatch.setenv("OPENAI_API_KEY", 'sk-ab/cret"ghi jkl')
    server = serve()
    server.fault = lambda body, attempt: fault
    with pytest.raises(PQMError, match=r"no such key: Bearer \*\*\*") as error:
        ask(server.policy)
    for part in ("ab", "cret", "ghi", "jkl"):
        assert part not in str(error.value).removeprefix(server.policy)


def test_tls_is_bounded_too(serve, tmp_path, monkeypatch):
    """With a certificate made here."""
    if not (openssl := shutil.which("openssl")):
        pytest.skip("needs the openssl command to make a certificate")
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "certificate.pem", *names]
    subprocess.run([openssl, *made], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    server = serve(lambda body: "the rest")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.fault = lambda body, attempt: ["dribble", "dribbled head", "huge"][attempt] if attempt < 3 else None
    assert ask(server.policy.replace("http", "https"), timeout=0.4) == Completion("the rest", True)
    assert len(server.seen) == 4


def test_steps_so_far_are_part_of_the_prompt(serve):
    server = serve(lambda body: "the rest")
    policy = open_policy(server.policy, PolicyOptions(step_separator="\n\n"))
    policy.submit(Request("Why?", ("one", "two\nlines"), 2**63 + 5, "key"))
    assert policy.collect() == [
        (Request("Why?", ("one", "two\nlines"), 2**63 + 5, "key"), Completion("the rest", True))
    ]
    policy.close()
    assert server.seen[0]["prompt"] == "Why?\none\n\ntwo\nlines\n\n"
    assert server.seen[0]["seed"] == 5


def test_a_pool_of_odd_completions_can_be_read(serve, tmp_path):
    """Empty, cut off, of 10,000 characters a step, with line separators inside: one record for each, in order."""
    from pqm_fast.data import read_records

    texts = ["", " \n\n", "x" * 10_000 + "\n" + r"\frac{" * 2000, "7 − 2 = 5\u2028A: 5", "a\r\nb\x0bc\n"]
    server = serve(lambda body: {"text": texts[len(server.seen) - 1], "finish_reason": "length"})
    data = write(tmp_path / "q.jsonl", questions(1))
    assert sample(data, tmp_path / "pool.jsonl", server.policy, n=5, parallel=1) == 0
    records = list(read_records(tmp_path / "pool.jsonl"))
    assert [record.steps for record in records] == [split_steps(text, "\n") for text in texts]
    assert [len(record.steps) for record in records] == [1, 1, 2, 1, 2]
    assert {record.extra["finish_reason"] for record in records} == {"length"}


def test_a_server_without_a_model_name_is_refused(data, tmp_path, capfd):
    for policy in ("http://localhost:8000/v1", "ftp://x/v1#m", "http:///v1#m", "http://localhost:port/v1#m"):
        assert sample(data, tmp_path / "pool.jsonl", policy) == 1
        assert "name a server and its model as http://localhost:8000/v1#MODEL" in capfd.readouterr().err
