"""A training configuration that takes seconds."""

import pytest
import tiny
import torch

from pqm_fast.data.encode import Template
from pqm_fast.train.config import TrainConfig


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def configure(tmp_path):
    model = str(tiny.model_folder(tmp_path / "model", num_hidden_layers=2))
    data = tiny.write_data(tmp_path / "data.jsonl")

    def make(out="run", **options):
        base = {
            "model": model,
            "data": (data,),
            "micro_batch_tokens": 128,
            "max_length": 64,
            "max_steps": 12,
            "learning_rate": 1e-2,
            "eval_every": 0,
            "save_every": 0,
            "log_every": 1,
            "progress": False,
            "cache_dir": str(tmp_path / "cache"),
            "device": "cpu",
            "template": Template(step_token="last"),
        }
        return TrainConfig(out=str(tmp_path / out), **(base | options))

    return make
