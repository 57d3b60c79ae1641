"""The commands that serve a checkpoint. tests/serving runs them."""

import json
import re
import shlex
from pathlib import Path

import pytest
from checkpoints import checkpoint

from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.publish.serving import served
from pqm_fast.scoring.scorer import Scorer

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serving-engines.md"


def test_commands_name_the_folder_and_the_id_of_the_step_token(tmp_path):
    folder = checkpoint(tmp_path / "a folder")
    ours, vllm = map(shlex.split, served(folder).commands)
    assert ours == ["pqm-fast", "serve", "--model", str(folder)]
    assert vllm[:4] == ["vllm", "serve", str(folder), "--pooler-config"]
    assert json.loads(vllm[4]) == {"tok_pooling_type": "STEP", "step_tag_id": 90}


def test_without_a_step_token_every_token_is_pooled(tmp_path):
    folder = checkpoint(tmp_path, "last", "qwen2")
    assert served(folder, "org/prm").commands == ["pqm-fast serve --model org/prm", "vllm serve org/prm"]


@pytest.mark.parametrize("step_token", ["<|step|>", "last"])
def test_the_page_makes_the_tokens_of_the_training(tmp_path, step_token):
    folder = checkpoint(tmp_path, step_token)
    first, *_, last = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names = {}
    code = f"{first}\n{last}".replace('"RUN', f'"{folder}').replace(
        '"What is 7 - 2?", ["7 - 2 = 5"]', '"w3", ["w4", "w5 w6"]'
    )
    exec(code, names)
    scorer = Scorer.from_pretrained(folder, device="cpu")
    [encoded] = scorer.encoder([Record("r", "w3", ["w4", "w5 w6"])])
    assert names["ids"] == encoded.input_ids.tolist()
    assert names["ends"] == encoded.step_tokens.tolist()
    assert names["bias"] == scorer.model.head.bias.item() == 3.0


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_sglang_reads_it_as_a_sequence_classifier(tmp_path, architecture):
    words = shlex.split(served(checkpoint(tmp_path, architecture=architecture), "org/prm").commands[2])
    assert words[:5] == ["python", "-m", "sglang.launch_server", "--model-path", "org/prm"]
    name = f"{architecture.capitalize()}ForSequenceClassification"
    assert json.loads(words[words.index("--json-model-override-args") + 1]) == {"architectures": [name]}
    assert words[-3:] == ["--disable-radix-cache", "--chunked-prefill-size", "-1"]


def test_what_is_no_checkpoint(tmp_path):
    folder = checkpoint(tmp_path)
    with pytest.raises(PQMError, match=r"no config\.json"):
        served(tmp_path)
    for text in ("[1]", "{", json.dumps(json.loads((folder / "config.json").read_text()) | {"architectures": []})):
        (folder / "config.json").write_text(text)
        with pytest.raises(PQMError, match=r"config\.json is damaged"):
            served(folder)
