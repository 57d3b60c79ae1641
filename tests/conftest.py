"""Shared test set-up: the interpreter for Triton where there is no GPU; fixtures: the optional real data, pictures that
are saved, a short limit for comparing answers, SIGINT as in a terminal, a full disk."""

import os
import resource
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import torch

# Must be set before triton is imported: without a GPU the kernels run in Triton's interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from shared import SHARED


def pytest_collection_modifyitems(items):
    # the longest tests first: begun last, they would leave the other cores idle at the end
    items.sort(key=lambda item: not (item.get_closest_marker("aot") or item.get_closest_marker("processes")))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def _shared(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"real data not present: {path.name} (expected beside the repository, in shared/)")
    return path


@pytest.fixture
def shared_data():
    """Call with a file name: the path of a real data file, or a skip with the reason."""
    return lambda name: _shared(SHARED / "data" / name)


@pytest.fixture
def shared_cases():
    """The folder of small inputs after public reports, or a skip with the reason."""
    return _shared(SHARED / "cases")


@pytest.fixture(scope="session")
def shared_tokenizer():
    """The folder of the real Qwen2 tokenizer, or a skip with the reason."""
    return _shared(SHARED / "tokenizers" / "qwen2")


@pytest.fixture
def figures(monkeypatch):
    """The matplotlib figures that are saved, before they are closed."""
    import matplotlib.pyplot as plt

    saved = []
    close = plt.close
    monkeypatch.setattr(plt, "close", lambda figure: saved.append(figure))
    yield saved
    for figure in saved:
        close(figure)


@pytest.fixture
def serve(monkeypatch):
    """Starts policy servers on 127.0.0.1. Waits between tries are 100 times shorter than usual, and 1 MiB is too
    large."""
    from openai_server import Server

    from pqm_fast.common import http_post
    from pqm_fast.sample import server_policy

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


@pytest.fixture
def short_judging(monkeypatch):
    """Answers that take longer than half a second to compare are different."""
    from pqm_fast.evaluate.answers import judge

    judge._stop()  # the limit is that of the next child
    monkeypatch.setattr(judge, "LIMIT", 0.5)
    yield
    judge._stop()


@pytest.fixture
def sigint_taken():
    """SIGINT does what it does in a terminal, in this process and in those that it starts: a job in the background, as
    the tests may be, ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def file_size_limit():
    """`with file_size_limit(BYTES)`: no file of this process may grow beyond it, as on a full disk; None: any size that
    the process may have."""

    @contextmanager
    def limit(size: int | None):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[1] if size is None else size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
