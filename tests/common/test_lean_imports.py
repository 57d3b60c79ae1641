"""Commands load optional packages only where they are used, and print no messages of other packages."""

import importlib.util
import json
import subprocess
import sys

import pytest
import tiny

from pqm_fast.data.encode import Template
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel

OPTIONAL = ("torchao", "liger_kernel", "peft", "bitsandbytes", "flash_attn", "matplotlib", "datasets")
CODE = """
import json, sys
from pqm_fast.cli import main
run, data, out, optional = *sys.argv[1:4], json.loads(sys.argv[4])
assert main(["score", "--model", run, "--data", data, "--out", out, "--device", "cpu", "--no-progress"]) == 0
scoring = [name for name in optional if name in sys.modules]
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.train.lora import add_adapters
add_adapters(StepQModel.from_pretrained(run), 2, 4)
adapting = [name for name in optional if name in sys.modules]
from transformers.utils import is_torchao_available
import importlib.util
assert is_torchao_available() == (importlib.util.find_spec("torchao") is not None)  # for later calls
print(json.dumps([scoring, adapting]))
"""


def test_commands_load_only_what_they_use(tmp_path):
    """Scoring, then adapters. transformers and peft would import torchao for any model; here it is not loaded, and only
    the command's own line is printed."""
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed, so nothing could load it")
    model = StepQModel.from_pretrained(str(tiny.model_folder(tmp_path / "model", num_hidden_layers=1)))
    model.save(tmp_path / "run", tiny.tokenizer(90), Recipe(Template(step_token="last")))
    files = [str(tmp_path / "run"), tiny.write_data(tmp_path / "data.jsonl", count=4), str(tmp_path / "out")]
    command = [sys.executable, "-c", CODE, *files, json.dumps(OPTIONAL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    said, loaded = done.stdout.splitlines()
    assert said == f"scores: {tmp_path / 'out'}"
    assert json.loads(loaded) == [[], ["peft"]]
