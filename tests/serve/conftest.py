import pytest
from serving import checkpoint, config, running

from pqm_fast.scoring.scorer import Scorer


@pytest.fixture(scope="package")
def model(tmp_path_factory):
    """The folder of a checkpoint."""
    return checkpoint(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="package")
def server(model):
    """A server with the default limits."""
    with running(config(model)) as server:
        yield server


@pytest.fixture(scope="package")
def scorer(model):
    return Scorer.from_pretrained(model, device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def direct(monkeypatch):
    """No proxy between a test and its server."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
