"""How the name of a policy is parsed."""

import pytest

from pqm_fast.errors import PQMError
from pqm_fast.sample.policy_name import parse_policy


def test_names_of_policies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "arithmetic").mkdir()
    assert parse_policy("http://localhost:8000/v1#org/model") == ("server", "http://localhost:8000/v1", "org/model")
    assert parse_policy("https://api.example.com/v1/#m#x") == ("server", "https://api.example.com/v1", "m#x")
    assert parse_policy("arithmetic:careless") == ("arithmetic", "", "careless")
    assert parse_policy("Qwen/Qwen2.5-Math-7B") == ("hub", "", "Qwen/Qwen2.5-Math-7B")
    assert parse_policy("./arithmetic") == ("hub", "", "./arithmetic")
    with pytest.raises(PQMError, match="name a server and its model"):
        parse_policy("http://localhost:8000/v1")
