"""The commands that serve a checkpoint. tests/serving runs them."""

import json
import shlex

import pytest
from checkpoints import checkpoint

from pqm_fast.errors import PQMError
from pqm_fast.publish.serving import served


def test_commands_name_the_folder_and_the_id_of_the_step_token(tmp_path):
    folder = checkpoint(tmp_path / "a folder")
    ours, vllm = map(shlex.split, served(folder).commands)
    assert ours == ["pqm-fast", "serve", "--model", str(folder)]
    assert vllm[:4] == ["vllm", "serve", str(folder), "--pooler-config"]
    assert json.loads(vllm[4]) == {"tok_pooling_type": "STEP", "step_tag_id": 90}


def test_without_a_step_token_every_token_is_pooled(tmp_path):
    folder = checkpoint(tmp_path, "last", "qwen2")
    assert served(folder, "org/prm").commands == ["pqm-fast serve --model org/prm", "vllm serve org/prm"]


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
