"""Checkpoints of tiny models with random weights."""

from pathlib import Path

import tiny
import torch

from pqm_fast.data.encode import Template
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel


def checkpoint(
    folder: Path, step_token: str = "<|step|>", architecture: str = "llama", tokenizer=None, **recipe
) -> Path:
    """The folder of a checkpoint in float32. The id of the step token is 90."""
    model = StepQModel.from_pretrained(str(tiny.model_folder(folder / "base", architecture)))
    tokenizer = tiny.tokenizer(90) if tokenizer is None else tokenizer
    model.fit_vocabulary(tokenizer, step_token)
    with torch.no_grad():
        model.head.bias.fill_(3.0)
    model.save(folder / "run", tokenizer, Recipe(Template(step_token=step_token), **recipe), torch.float32)
    return folder / "run"
