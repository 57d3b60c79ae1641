"""Slow bodies, cut connections, sockets that do nothing, too much at once: the server goes on answering the others."""

import json
import os
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from serving import config, error, head, post, raw, read_answer, running

from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.scoring.remote import RemoteScorer

GOOD = {"question": "w3", "solutions": [["w4"]]}
BODY = json.dumps(GOOD).encode()


class Held:
    """From `with held` on, the model waits in `scores` until it is let go."""

    def __init__(self, monkeypatch):
        self.entered, self.let_go, self.batches = threading.Event(), threading.Event(), []
        self.let_go.set()
        scores = StepQModel.scores

        def wait(model, batch, *more):
            self.batches.append(sorted(set(batch.input_ids.tolist())))
            self.entered.set()
            assert self.let_go.wait(30)
            return scores(model, batch, *more)

        monkeypatch.setattr(StepQModel, "scores", wait)

    def __enter__(self):
        self.let_go.clear()
        self.entered.clear()
        self.batches.clear()

    def __exit__(self, *error):
        self.let_go.set()


@pytest.fixture
def held(monkeypatch):
    return Held(monkeypatch)


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_slow_bodies_and_silent_connections(model):
    """Each is given up after its time, and takes nothing with it."""
    with running(config(model, limits={"receive_timeout": 1.5})) as server:
        second = raw(server, head("/score", len(BODY)), BODY)  # a good request, then half a head
        assert _answered(second)
        slow = [raw(server, head("/score", len(BODY)), BODY[:5]) for _ in range(20)]
        half_a_head = [raw(server, b"POST /score HTTP/1.1\r\nHost") for _ in range(20)]
        silent = [raw(server) for _ in range(20)]
        second.sendall(b"POST /score HT")
        assert post(server, "/score", GOOD).ok
        for connection in slow:
            status, answer = read_answer(connection)
            assert (status, answer["error"]["code"]) == (408, "slow_body")
        for connection in [*half_a_head, *silent, second]:
            assert _closed(connection)
        wait_until(lambda: not server.server.server_state.connections)
        assert server.gate.requests == server.gate.waiting_bytes == 0


def test_half_a_head_after_a_long_request(model, held):
    with running(config(model, limits={"receive_timeout": 0.5})) as server, held:
        connection = raw(server, head("/score", len(BODY)), BODY)
        time.sleep(0.8)  # the time for the first head is over
        held.let_go.set()
        assert _answered(connection)
        connection.sendall(b"POST /score HT")
        assert _closed(connection)


def _answered(connection):
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(65536)
    return answer.startswith(b"HTTP/1.1 200")


def _closed(connection):
    try:
        return connection.recv(10) == b""
    except ConnectionResetError:
        return True


def test_a_thousand_open_sockets(model, scorer):
    with running(config(model)) as server:
        sockets = [raw(server) for _ in range(1000)]
        wait_until(lambda: len(server.server.server_state.connections) >= 1000)
        answer = post(server, "/score", GOOD)
        assert answer.json()["scores"][0] == pytest.approx(scorer.score([("w3", ["w4"])])[0], abs=1e-5)
        for connection in sockets:
            connection.close()


def test_the_work_of_a_client_that_has_gone_is_given_up(model, held):
    with running(config(model)) as server:
        with ThreadPoolExecutor(2) as pool, held:
            first = pool.submit(post, server, "/score", GOOD)
            assert held.entered.wait(20)
            body = json.dumps({"question": "w3", "solutions": [["w44"]]}).encode()
            gone = [raw(server, head("/score", len(body)), body) for _ in range(5)]
            wait_until(lambda: server.gate.requests == 6)
            for connection in gone:
                connection.close()
            wait_until(lambda: server.gate.requests == 1)
            held.let_go.set()
            assert first.result().ok
        assert post(server, "/score", GOOD).ok
        assert not any(44 in batch for batch in held.batches)
        cut = raw(server, head("/score", 1000), BODY)  # cut in the middle of its body
        wait_until(lambda: server.gate.requests == 1)
        cut.close()
        wait_until(lambda: server.gate.requests == 0)
        metrics = requests.get(f"{server.url}/metrics", timeout=10).text
        assert 'pqm_fast_requests_total{code="499",path="/score"} 6.0' in metrics


def test_too_many_requests_are_told_to_come_back(model, held, scorer):
    with running(config(model, limits={"max_requests": 3})) as server, ThreadPoolExecutor(4) as pool, held:
        working = [pool.submit(post, server, "/score", GOOD) for _ in range(3)]
        wait_until(lambda: server.gate.requests == 3)
        answer = post(server, "/score", GOOD)
        assert error(answer) == (429, "busy")
        assert answer.headers["Retry-After"] == "1"
        assert requests.get(f"{server.url}/health", timeout=10).ok
        later = pool.submit(RemoteScorer(server.url).score, [("w3", ["w4"])])  # asks again until it is its turn
        wait_until(lambda: 'code="429",path="/score"} 2' in _metrics(server))
        held.let_go.set()
        assert later.result()[0] == pytest.approx(scorer.score([("w3", ["w4"])])[0], abs=1e-5)
        assert all(request.result().ok for request in working)


def _metrics(server):
    return server.gate.metrics.text().decode()


def test_too_much_text_at_once(model, held):
    big = GOOD | {"question": "w3 " * 200_000}  # 0.6 MiB
    with running(config(model, limits={"max_waiting_mb": 1.0})) as server, ThreadPoolExecutor(2) as pool, held:
        scored = pool.submit(post, server, "/score", GOOD)
        assert held.entered.wait(20)
        first = pool.submit(post, server, "/score", big)
        wait_until(lambda: server.gate.waiting_bytes > 600_000)
        assert error(post(server, "/score", big)) == (429, "busy")
        held.let_go.set()
        assert first.result().json()["scores"] == [[None]]
        assert scored.result().ok
        assert post(server, "/score", big).ok


def test_clients_without_the_token_take_no_place(model, monkeypatch):
    """Neither do those whose body is refused, and is read only so that they read the answer."""
    monkeypatch.setenv("PQM_FAST_TOKEN", "secret")
    authorized = {"headers": {"Authorization": "Bearer secret"}}
    with running(config(model, limits={"max_requests": 1, "max_waiting_mb": 0.1})) as server:
        half = [raw(server, head("/score", 10**6), b" " * 200_000) for _ in range(3)]
        half += [raw(server, head("/health", 10**6), b" " * 200_000) for _ in range(3)]
        too_large = head("/score", 10**8, "Authorization: Bearer secret")
        half += [raw(server, too_large, b" " * 200_000) for _ in range(3)]
        assert post(server, "/score", GOOD, **authorized).ok
        assert requests.get(f"{server.url}/health", timeout=10).ok
        assert server.gate.requests == server.gate.waiting_bytes == 0
        for connection in half:
            connection.close()
        refused = ('code="401",path="/score"} 3', 'code="413",path="/score"} 3', 'code="405",path="/health"} 3')
        wait_until(lambda: all(row in _metrics(server) for row in refused))
        assert 'code="500"' not in _metrics(server)


def test_an_answer_that_is_not_read(model):
    long = json.dumps({"question": "w3", "solutions": ["w4 " * 99_000], "separator": " "}).encode()
    with running(config(model, limits={"receive_timeout": 1.0})) as server:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        for _ in range(6):  # more answers than the system keeps for a reader
            connection.sendall(head("/score", len(long)) + long)
        wait_until(lambda: server.server.server_state.connections)
        wait_until(lambda: not server.server.server_state.connections)
        wait_until(lambda: server.gate.requests == server.gate.waiting_bytes == 0)
        assert post(server, "/score", GOOD).ok


def test_a_second_signal_ends_the_process_at_once(model, monkeypatch):
    killed = []
    monkeypatch.setattr("pqm_fast.serve.run.os.kill", lambda *arguments: killed.append(arguments))
    monkeypatch.setattr("pqm_fast.serve.run.signal.signal", lambda *arguments: killed.append(arguments))
    with running(config(model)) as server:
        server.server.handle_exit(signal.SIGTERM, None)
        server.server.handle_exit(signal.SIGTERM, None)  # the same, sent to the process group too
        assert killed == []
        time.sleep(0.3)
        server.server.handle_exit(signal.SIGINT, None)
    assert killed == [(signal.SIGINT, signal.SIG_DFL), (os.getpid(), signal.SIGINT)]


def test_the_time_of_a_request(model, held):
    with running(config(model, limits={"timeout": 0.3})) as server, held:
        assert error(post(server, "/score", GOOD)) == (504, "timeout")
        held.let_go.set()
        assert post(server, "/score", GOOD).ok


def test_a_stop_finishes_what_is_at_work(model, held):
    with ThreadPoolExecutor(4) as pool:
        with running(config(model)) as server, held:
            working = [pool.submit(post, server, "/score", GOOD) for _ in range(3)]
            wait_until(lambda: server.gate.requests == 3)
            server.server.should_exit = True
            wait_until(lambda: _refused(server))
            time.sleep(0.4)
            assert server.thread.is_alive()
            held.let_go.set()
        assert [request.result().status_code for request in working] == [200, 200, 200]


def _refused(server):
    try:
        socket.create_connection(("127.0.0.1", server.port), 1).close()
    except ConnectionRefusedError:
        return True
    return False


def test_requests_that_arrive_together_share_a_batch(model, held, scorer):
    expected = {word: scorer.score([("w5", [f"w{word}"])])[0] for word in range(20, 28)}
    with running(config(model)) as server, ThreadPoolExecutor(9) as pool, held:
        first = pool.submit(post, server, "/score", GOOD)
        assert held.entered.wait(20)
        others = [
            pool.submit(post, server, "/score", {"question": "w5", "solutions": [[f"w{word}"]]}) for word in expected
        ]
        wait_until(lambda: server.gate.requests == 9)
        time.sleep(0.2)  # the last of them is encoded
        held.let_go.set()
        for scores, request in zip(expected.values(), others, strict=True):
            assert request.result().json()["scores"][0] == pytest.approx(scores, abs=1e-5)
        assert first.result().ok
    assert len(held.batches) == 2
    assert set(expected) <= set(held.batches[-1])
