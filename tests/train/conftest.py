"""Training configurations that take seconds."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from small_runs import options_in

from pqm_fast.model import step_q_model
from pqm_fast.train import loop
from pqm_fast.train.config import TrainConfig


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A model in `model` and records in `data.jsonl`, which no test changes."""
    folder = tmp_path_factory.mktemp("small")
    tiny.model_folder(folder / "model", num_hidden_layers=2)
    tiny.write_data(folder / "data.jsonl")
    return folder


@pytest.fixture
def configure(small, tmp_path):
    def make(out="run", **options):
        base = {"max_steps": 12, "learning_rate": 1e-2, "eval_every": 0, "save_every": 0}
        return TrainConfig(out=str(tmp_path / out), **(options_in(small) | base | options))

    return make


@pytest.fixture
def branching(tmp_path):
    """The option for data whose solutions share first steps: 12 questions, from 2 to 12 solutions of each."""
    rng = np.random.default_rng(0)
    with open(tmp_path / "branching.jsonl", "w") as file:
        for question in range(12):
            stem = [tiny.text(rng, 4) for _ in range(6)]
            for i in range(rng.integers(2, 13)):
                shared = int(rng.integers(6))
                steps = stem[:shared] + [tiny.text(rng, 3) for _ in range(2)]
                labels = [True] * shared + [bool(b) for b in rng.integers(0, 2, 2)]
                row = {"id": f"{question}/{i}", "prompt": f"w{20 + question}", "completions": steps, "labels": labels}
                file.write(json.dumps(row) + "\n")
    return {"data": (str(tmp_path / "branching.jsonl"),)}


@pytest.fixture(autouse=True, scope="module")
def no_picture():
    """Drawing is slow, and matters in few tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "draw_curve", lambda folder: (folder / "training.png").write_bytes(b""))
        yield


@pytest.fixture(autouse=True, scope="module")
def known_architecture():
    """Each model is checked before it is used, in several passes. On the CPU those of these tests pass."""
    with pytest.MonkeyPatch.context() as patch:
        if not torch.cuda.is_available():
            patch.setattr(step_q_model, "check_packing", lambda model: None)
        yield


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A model and data for runs on several ranks, which every loss can use."""
    folder = tmp_path_factory.mktemp("world")
    tiny.model_folder(folder / "model", num_hidden_layers=2)
    data = tiny.write_data(folder / "data.jsonl", count=240, questions=40)
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    for row in rows:  # whether the solution is right, for the losses that read it
        row["correct"] = bool(all(row["labels"]))
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def make_in(world):
    """Configurations of such runs in a folder."""

    def configure(out, **options):
        base = {"max_steps": 8, "learning_rate": 1e-3, "eval_every": 4, "save_every": 0}
        exact = {"save_dtype": "float32", "dtype": "float32", "layers": "eager"}
        return TrainConfig(out=str(out), **(options_in(world) | base | exact | options))

    return configure


@pytest.fixture
def make(make_in, tmp_path):
    """The same in a folder of the test."""
    return lambda out, **options: make_in(tmp_path / out, **options)
