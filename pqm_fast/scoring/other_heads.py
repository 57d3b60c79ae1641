"""The heads of other PRMs, as one Q-value: their weights are read by name, and no code of theirs is run.

The logit of the good label minus that of the bad one is linear in what comes before: a head of two rows becomes their
difference, and of a language model's head only two of its rows are kept.
"""

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from pqm_fast.data.encode import single_id
from pqm_fast.errors import PQMError
from pqm_fast.model.loading import classification_class, head_name, read_weights, short_reason
from pqm_fast.scoring.other_prms import Settled

# what some architectures do to logits behind their head: differences are then others
_AFTER_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")


def load_other(
    path: str, config: Any, dtype: torch.dtype, prm: Settled, tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """A `*ForTokenClassification` of a folder or hub id on the CPU, whose head (float32) gives one Q-value a token.

    `config` is what `load_config` gives. Raises PQMError where the weights are none of such a model.
    """
    try:
        if prm.head == "tokens":
            ids = _id(path, tokenizer, prm.good_token), _id(path, tokenizer, prm.bad_token)
            return _of_tokens(path, config, dtype, ids)
        return _of_labels(path, config, dtype, hidden_layer=prm.head == "mlp")
    except PQMError:
        raise
    except Exception as error:  # what transformers raises has no common class
        raise PQMError(f"{path}: this model cannot be loaded: {short_reason(error)}") from error


def _id(path: str, tokenizer: PreTrainedTokenizerBase, token: str) -> int:
    found = single_id(tokenizer, token)
    if found is None:
        raise PQMError(f"{path}: {token!r} is not one token of its tokenizer; give --good-token and --bad-token")
    return found


def _of_labels(path: str, config: Any, dtype: torch.dtype, hidden_layer: bool) -> PreTrainedModel:
    config.num_labels = 2
    kind = classification_class(type(config))
    if hidden_layer:
        kind = _with_hidden_layer(kind)
    model = _loaded(path, kind, config, dtype, "no head of two labels" + " with a hidden layer" * hidden_layer)
    name = head_name(model)
    head = model.get_submodule(name).float()
    *before, last = head.children() if isinstance(head, nn.Sequential) else [head]
    assert isinstance(last, nn.Linear)
    bias = None if last.bias is None else last.bias[1] - last.bias[0]
    one = _difference(last.weight[1], last.weight[0], bias)
    setattr(model, name, nn.Sequential(*before, one) if before else one)
    model.config.num_labels = 1
    return model


def _with_hidden_layer(kind: Any) -> Any:
    def init(self: Any, config: Any) -> None:
        kind.__init__(self, config)
        width = config.get_text_config().hidden_size
        self.score = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    return type(kind.__name__, (kind,), {"__init__": init, "__module__": kind.__module__})


def _of_tokens(path: str, config: Any, dtype: torch.dtype, ids: tuple[int, int]) -> PreTrainedModel:
    text = config.get_text_config()
    changed = [name for name in _AFTER_HEAD if getattr(text, name, None) not in (None, 1, 1.0)]
    if changed:
        raise PQMError(
            f"{path}: {config.model_type} changes its logits ({changed[0]}), so their difference is no Q-value"
        )
    kind = AutoModelForCausalLM._model_mapping[type(config)]
    language_model = _loaded(path, kind, config, dtype, "no head of a language model")
    head = language_model.get_output_embeddings()
    rows = head.weight[list(ids)].float()
    bias = getattr(head, "bias", None)
    with torch.device("meta"):  # all of its weights are replaced
        model = classification_class(type(config))(language_model.config)
    prefix = model.base_model_prefix
    setattr(model, prefix, language_model.get_submodule(prefix))
    one = _difference(rows[0], rows[1], None if bias is None else bias[ids[0]].float() - bias[ids[1]].float())
    setattr(model, head_name(model), one)
    return model


def _loaded(path: str, kind: Any, config: Any, dtype: torch.dtype, without_head: str) -> PreTrainedModel:
    model, mismatch = read_weights(path, kind, config, dtype)
    if wrong := sorted(mismatch.missing | mismatch.wrong_shape):
        own = not any(key.startswith(f"{model.base_model_prefix}.") for key in wrong)
        what = without_head if own else "other weights than its config.json says"
        raise PQMError(
            f"{path}: it has {what}: {len(wrong)} tensors are missing or of another shape, such as {wrong[0]}; "
            "check --preset and --head"
        )
    return model


@torch.no_grad()
def _difference(good: torch.Tensor, bad: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """A linear layer with one output, in float32, of two rows [D] of another."""
    one = nn.Linear(len(good), 1, dtype=torch.float32)
    one.weight.copy_((good - bad)[None])
    one.bias.fill_(0.0 if bias is None else float(bias))
    return one
