"""The model of a run before its first step: a backbone with a Q-value head, its tokenizer and template."""

from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from pqm_fast.data.encode import Template
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.model.tokenizer import load_tokenizer
from pqm_fast.train.config import TrainConfig


class Backbone(NamedTuple):
    model: StepQModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    """With the chat template of the tokenizer written out."""


def load_backbone(config: TrainConfig, dtype: torch.dtype, device: torch.device, notes: list[str]) -> Backbone:
    """Loads the model that `config` names, with an embedding for the step token. `notes` gets what a user should know
    beyond the model's `load_report`.

    Raises PQMError for a model or a tokenizer that cannot be used.
    """
    model = StepQModel.from_pretrained(config.model, dtype=dtype, device=device, attention=config.attention)
    tokenizer = load_tokenizer(config.model, notes)
    if not type(model.classifier).__module__.startswith("transformers."):
        notes.append(
            f"transformers has no {type(model.classifier).__name__}: the checkpoint loads through pqm_fast, "
            "not in other programs"
        )
    template = config.template.resolve(tokenizer)
    if not model.step_rows_only:
        notes.append(f"{model.config.model_type}: the last layer computes every token, not only those that steps read")
    if added := model.fit_vocabulary(tokenizer, template.step_token):
        notes.append(added)
    return Backbone(model, tokenizer, template)
