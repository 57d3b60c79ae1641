"""`pqm-fast push`, against a server in the place of the hub: what it uploads, and what it refuses."""

import json
import shutil
import threading

import huggingface_hub
import pytest
from checkpoints import checkpoint
from flip import flip
from hub_server import Hub

from pqm_fast.cli import main
from pqm_fast.common.checksums import SUMS_FILE, find_damage
from pqm_fast.scoring.scorer import Scorer

TOKEN = "hf_secret"
PUBLISHED = {"README.md", SUMS_FILE, "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder: a checkpoint with what a training leaves beside it."""
    run = checkpoint(tmp_path_factory.mktemp("push"))
    (run / "README.md").write_text("---\ntags: [a]\n---\n# A card\n")
    (run / "checkpoints" / "step-0000004").mkdir(parents=True)
    (run / "checkpoints" / "step-0000004" / "model.safetensors").write_bytes(b"resumable")
    for name in ("config.yaml", "metrics.jsonl", "metrics.json", "training.png", "tokens.json"):
        (run / name).write_text("mine")
    return run


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def push(*arguments):
    return main(["push", *map(str, arguments)])


def test_what_is_uploaded_loads_and_gives_the_same_scores(run, hub, tmp_path, capsys):
    assert push(run, "org/prm") == 0
    assert f"pushed: {hub.address}/org/prm\n" in capsys.readouterr().out
    assert (hub.repos, hub.tokens) == ({"org/prm": False}, {f"Bearer {TOKEN}"})
    [(place, files)] = hub.files.items()
    assert place == ("org/prm", "main")
    assert set(files) == PUBLISHED
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, contents in files.items():
        assert contents == (run / name).read_bytes()
        (copy / name).write_bytes(contents)
    assert find_damage(copy, ["model.safetensors"]) is None
    texts = [("w3 w4", ["w5", "w6 w7"])]
    one, other = (Scorer.from_pretrained(folder, device="cpu").score(texts) for folder in (run, copy))
    assert one == other


def test_a_private_repository_and_a_branch(run, hub):
    assert push(run, "org/prm", "--private", "--revision", "second") == 0
    assert hub.repos == {"org/prm": True}
    assert set(hub.files["org/prm", "second"]) == PUBLISHED
    assert push(run, "--checkpoint", run, "--repo", "org/prm") == 0  # it exists: another commit
    assert hub.repos == {"org/prm": True}


def test_a_dry_run_sends_nothing(run, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert push(run, "org/prm", "--dry-run") == 0
    out = capsys.readouterr().out
    assert {line.partition(":")[0].strip() for line in out.splitlines() if " bytes" in line} == PUBLISHED
    assert f"  model.safetensors: {(run / 'model.safetensors').stat().st_size:,} bytes\n" in out
    assert "nothing was sent (--dry-run)\n\n---\ntags: [a]\n---\n# A card\n" in out
    (run / "README.md").unlink()
    assert push(run, "org/prm", "--dry-run") == 0
    assert "warning: no README.md" in capsys.readouterr().out


def test_without_checksums_the_model_files_are_taken(run, hub):
    (run / SUMS_FILE).unlink()
    (run / "model.safetensors.index.json").write_text("{}")
    for name in ("hf_token.json", "training_args.bin", "optimizer.safetensors"):
        (run / name).write_text("secret")
    assert push(run, "org/prm") == 0
    assert set(hub.files["org/prm", "main"]) == PUBLISHED - {SUMS_FILE} | {"model.safetensors.index.json"}


@pytest.mark.parametrize(
    ("break_it", "repo", "message"),
    [
        (lambda run: None, "org/team/prm", "name it ORG/NAME"),
        (lambda run: None, "org/..", "name it ORG/NAME"),
        (shutil.rmtree, "org/prm", "no such folder"),
        (lambda run: (run / "config.json").unlink(), "org/prm", "no config.json"),
        (lambda run: (run / "config.json").write_text("{"), "org/prm", "config.json is damaged"),
        (lambda run: (run / "model.safetensors").unlink(), "org/prm", "holds no weights"),
        (lambda run: flip(run / "model.safetensors"), "org/prm", "model.safetensors or SHA256SUMS has changed"),
    ],
)
def test_what_cannot_be_pushed(run, hub, capsys, break_it, repo, message):
    break_it(run)
    assert push(run, repo) == 1
    assert message in capsys.readouterr().err
    assert not hub.tokens  # nothing was asked


def test_a_model_of_others_is_refused(run, hub, capsys):
    config = json.loads((run / "config.json").read_text())
    del config["pqm_fast"]
    (run / "config.json").write_text(json.dumps(config))
    assert push(run, "org/prm") == 1
    assert "not a checkpoint of pqm-fast" in capsys.readouterr().err


def test_without_a_token_or_a_permission(run, hub, monkeypatch, capsys):
    hub.refuse = 403
    assert push(run, "org/prm") == 1
    error = capsys.readouterr().err
    assert "org/prm: not uploaded: " in error
    assert "403" in error
    assert TOKEN not in error
    monkeypatch.setattr("pqm_fast.publish.push.get_token", lambda: None)
    assert push(run, "org/prm") == 1
    assert "set HF_TOKEN" in capsys.readouterr().err
