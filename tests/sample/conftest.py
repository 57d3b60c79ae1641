import threading

import pytest
from openai_server import Server

from pqm_fast.sample import post as post_module
from pqm_fast.sample import server as server_module


@pytest.fixture
def serve(monkeypatch):
    """Starts servers on 127.0.0.1; waits between tries are 100 times shorter than they would be; 1 MiB is too much."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(server_module, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(server_module, "LONGEST_WAIT", 0.6)
    monkeypatch.setattr(post_module, "MOST_BYTES", 2**20)
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
