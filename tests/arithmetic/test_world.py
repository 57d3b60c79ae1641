import hashlib
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from pqm_fast.arithmetic.policies import TRAINED
from pqm_fast.arithmetic.world import write_world
from pqm_fast.errors import PQMError

SMALL = {"problems": 60, "samples": 2, "test_problems": 12, "candidates": 3}


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_back(question, steps):
    """The right answer of a question, and which steps arrive at its value after their operation: from the texts."""
    start, *rest = question.split()
    value, truth = int(start), {}
    for letter, operand in zip(rest[::2], rest[1::2], strict=True):
        value += int(operand)
        truth[letter] = value
    return str(value), [int(step.split("=")[1]) == truth[step.split(":")[0]] for step in steps]


def digest(folder) -> str:
    """One hash over the names and bytes of every file below `folder`."""
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        whole.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world") / "new" / "folder", **SMALL)


def test_train_lines_are_stepwise_records(world):
    rows = lines(world.train)
    assert len(rows) == 60 * 6 * 2
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == ["id", "prompt", "completions", "labels", "answer", "policy"]
        assert (row["answer"], row["labels"]) == read_back(row["prompt"], row["completions"])
        assert {type(label) for label in row["labels"]} == {bool}
    assert Counter(row["policy"] for row in rows) == dict.fromkeys(TRAINED, 120)
    per_question = Counter(row["prompt"] for row in rows)
    assert len(per_question) == 60
    assert set(per_question.values()) == {12}


def test_pool_lines_hold_every_policy_and_exact_labels_and_verdicts(world):
    rows = lines(world.pool)
    assert len({row["id"] for row in rows}) == len({row["question"] for row in rows}) == 12
    verdicts, labels = Counter(), Counter()
    for row in rows:
        assert list(row) == ["id", "question", "answer", "responses"]
        assert row["question"].split()[1::2] == list("abcde")
        assert Counter(one["model_name"] for one in row["responses"]) == dict.fromkeys((*TRAINED, "mixed"), 3)
        for response in row["responses"]:
            assert list(response) == ["text", "labels", "model_name", "correct"]
            steps = response["text"].splitlines()
            assert (row["answer"], response["labels"]) == read_back(row["question"], steps)
            assert response["correct"] is (steps[-1].split("=")[-1] == row["answer"])
            verdicts[response["correct"]] += 1
            labels.update(response["labels"])
    assert min(verdicts.values()) > 30
    assert min(labels.values()) > 100


def test_no_test_problem_and_no_mixed_in_training(world):
    rows = lines(world.train)
    assert not {row["prompt"] for row in rows} & {row["question"] for row in lines(world.pool)}
    assert "mixed" not in {row["policy"] for row in rows}


def test_disjoint_even_where_chance_alone_would_repeat_some_problems(tmp_path):
    world = write_world(tmp_path, problems=2000, samples=1, test_problems=2000, candidates=1)
    questions = {row["question"] for row in lines(world.pool)}
    assert len(questions) == 2000
    assert not questions & {row["prompt"] for row in lines(world.train)}


def test_the_model_folder_holds_a_config_a_tokenizer_and_no_weights(world):
    assert {path.name for path in world.model.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    config = AutoConfig.from_pretrained(world.model)
    tokenizer = AutoTokenizer.from_pretrained(world.model)
    assert config.vocab_size == len(tokenizer)
    assert config.tie_word_embeddings
    assert config.max_position_embeddings == tokenizer.model_max_length == 256
    assert config.initializer_range == 0.125
    assert config.dtype == torch.float32
    model = AutoModel.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(164_000, rel=0.02)
    prompt = lines(world.train)[0]["prompt"]
    hidden = model(**tokenizer(prompt, return_tensors="pt")).last_hidden_state
    assert hidden.shape == (1, len(prompt.split()), 64)
    assert hidden.dtype == torch.float32


def test_the_same_bytes_in_a_process_with_another_hash_seed(world, tmp_path):
    code = f"import sys; from pqm_fast.arithmetic.world import write_world; write_world(sys.argv[1], **{SMALL!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=True)
    assert digest(tmp_path) == digest(world.train.parent)


def test_another_seed_is_another_world(world, tmp_path):
    other = write_world(tmp_path, **SMALL, seed=1)
    ours, theirs = lines(world.train), lines(other.train)
    assert {row["prompt"] for row in ours} != {row["prompt"] for row in theirs}
    assert {row["question"] for row in lines(world.pool)} != {row["question"] for row in lines(other.pool)}


def test_sizes_do_not_move_what_they_do_not_concern(world, tmp_path):
    more = write_world(tmp_path, **{**SMALL, "problems": 80, "candidates": 4})
    assert lines(more.train)[: 60 * 12] == lines(world.train)
    for large, small in zip(lines(more.pool), lines(world.pool), strict=True):
        assert large["question"] == small["question"]
        assert [one for i, one in enumerate(large["responses"]) if i % 4 < 3] == small["responses"]


def test_writing_again_replaces_the_world_and_leaves_other_files(tmp_path):
    (tmp_path / "train.jsonl").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    first = write_world(tmp_path, **SMALL)
    before = digest(tmp_path)
    assert write_world(tmp_path, **SMALL) == first
    assert digest(tmp_path) == before
    assert {path.name for path in tmp_path.iterdir()} == {"train.jsonl", "pool.jsonl", "model", "notes.txt"}


def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch):
    write_world(tmp_path, **SMALL)
    before = digest(tmp_path)

    def interrupt(folder):
        raise KeyboardInterrupt

    monkeypatch.setattr("pqm_fast.arithmetic.world.write_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path, **SMALL, seed=1)
    assert digest(tmp_path) == before


@pytest.mark.parametrize("name", ["problems", "samples", "test_problems", "candidates"])
def test_counts_below_one_are_refused_before_anything_is_written(tmp_path, name):
    with pytest.raises(PQMError, match="0"):
        write_world(tmp_path / "world", **{**SMALL, name: 0})
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_way_is_refused(tmp_path):
    path = tmp_path / "world"
    path.write_text("")
    with pytest.raises(PQMError, match="is a file"):
        write_world(path, **SMALL)


def test_problems_and_policies_do_without_torch():
    code = "import sys, pqm_fast.arithmetic.policies;sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
