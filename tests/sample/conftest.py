import threading

import pytest
from openai_server import Server

from pqm_fast.common import http_post
from pqm_fast.sample import server_policy


@pytest.fixture
def serve(monkeypatch):
    """Starts servers on 127.0.0.1. Waits between tries are 100 times shorter than usual, and 1 MiB is too large."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(server_policy, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(server_policy, "LONGEST_WAIT", 0.6)
    monkeypatch.setattr(http_post, "MAX_REPLY_BYTES", 2**20)
    started: list[Server] = []

    def start(*arguments, **options) -> Server:
        server = Server(*arguments, **options)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()
