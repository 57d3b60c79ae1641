"""What a command loads and prints that is not its own: optional packages only where they are used, no foreign line."""

import importlib.util
import json
import subprocess
import sys

import pytest
import tiny

OPTIONAL = ("torchao", "liger_kernel", "peft", "bitsandbytes", "flash_attn", "matplotlib", "datasets")
CODE = """
import json, sys
from pqm_fast.cli import main
commands, optional = map(json.loads, sys.argv[1:])
assert not any(map(main, commands))
loaded = [name for name in optional if name in sys.modules]
from transformers.utils import is_torchao_available
import importlib.util
assert is_torchao_available() == (importlib.util.find_spec("torchao") is not None)  # for who asks later
print(json.dumps(loaded))
"""


def test_commands_load_only_what_they_use(tmp_path):
    """Training with adapters, then scoring: torchao, which transformers and peft import for any model where it is
    installed, stays out, and there is no line but the commands' own."""
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed, so nothing could load it")
    model, data = tiny.model_folder(tmp_path / "model", num_hidden_layers=1), tiny.write_data(tmp_path / "data.jsonl")
    run, out = str(tmp_path / "run"), str(tmp_path / "out")
    files = ["--device", "cpu", "--no-progress", "--data", data]
    sizes = ["--max-steps", "1", "--micro-batch-tokens", "256", "--max-length", "64", "--lora-rank", "2"]
    train = ["train", "--model", str(model), "--out", run, "--cache-dir", str(tmp_path / "cache"), *sizes, *files]
    score = ["score", "--model", run, "--out", out, *files]
    command = [sys.executable, "-c", CODE, json.dumps([train, score]), json.dumps(OPTIONAL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    first, *_, last, loaded = done.stdout.splitlines()
    assert first.startswith("llama, 12,929 parameters, cpu")
    assert last == f"scores: {out}"
    assert json.loads(loaded) == ["peft", "matplotlib"]  # for adapters and the picture of the curves
