"""Computes the last decoder layer only at the rows that steps read, because no other row is used.

Every token attends. The output projection, the MLP and the final norm are computed only for the rows in
`plan.head.tokens`. Only decoder layers whose forward pass is known to be the one written here are supported.
"""

from typing import Any

import torch
from torch import nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from pqm_fast.model.attention import BatchPlan
from pqm_fast.model.attention.packed import packed_attention


def restrict_to_step_rows(backbone: nn.Module) -> bool:
    """Replaces the forward pass of the last layer of `backbone`, in place. Returns False if the layer is not supported.

    The layer's class is replaced and the layer is not wrapped: parameters keep their names, and what transformers'
    class does around `forward` (activation checkpointing) continues to work.
    """
    layers = getattr(backbone, "layers", None)
    if not layers or not isinstance(layers[-1], (_AtSteps, *_AT_STEPS)):
        return False
    if type(layers[-1]) in _AT_STEPS:  # otherwise it is restricted already, or an unknown subclass
        layers[-1].__class__ = _AT_STEPS[type(layers[-1])]
    return is_restricted(layers[-1])


def is_restricted(layer: object) -> bool:
    """Whether a layer computes only the rows that steps read, where a plan lists them."""
    return isinstance(layer, _AtSteps)


class _AtSteps:
    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        plan: BatchPlan | None = None,
        **kwargs,
    ) -> torch.Tensor:
        """[1, T, D] -> [1, R, D]; transformers' own forward pass over all rows if `plan` lists none."""
        if plan is None or plan.head.tokens is None:
            kwargs |= {"position_embeddings": position_embeddings, "plan": plan}
            return super().forward(hidden_states, **kwargs)  # type: ignore[misc]
        attention, normed = self.self_attn, self.input_layernorm(hidden_states)
        query, key, value = (_heads(attention, name, normed) for name in "qkv")
        mixed, _ = packed_attention(
            attention,
            *apply_rotary_pos_emb(query, key, *position_embeddings),
            value,
            None,
            plan=plan,
            scaling=attention.scaling,
            dropout=attention.attention_dropout if self.training else 0.0,
            sliding_window=_window(self),
        )
        hidden, mixed_at_rows = (x.index_select(1, plan.head.tokens) for x in (hidden_states, mixed.flatten(2)))
        hidden = hidden + attention.o_proj(mixed_at_rows)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


def _heads(attention: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """[1, T, D] -> [1, heads, T, d], with a norm where the architecture has one (Qwen3)."""
    heads = getattr(attention, f"{name}_proj")(x).unflatten(-1, (-1, attention.head_dim))
    norm = getattr(attention, f"{name}_norm", None)
    return (heads if norm is None else norm(heads)).transpose(1, 2)


def _window(layer: Any) -> int | None:
    if isinstance(layer, MistralDecoderLayer):  # the only one that reads it from its config in every layer
        return layer.self_attn.config.sliding_window
    return getattr(layer.self_attn, "sliding_window", None)


# Named classes at module level, so that a model that holds them can be pickled.
class LlamaDecoderLayerAtSteps(_AtSteps, LlamaDecoderLayer):  # type: ignore[misc]
    pass


class MistralDecoderLayerAtSteps(_AtSteps, MistralDecoderLayer):  # type: ignore[misc]
    pass


class Qwen2DecoderLayerAtSteps(_AtSteps, Qwen2DecoderLayer):  # type: ignore[misc]
    pass


class Qwen3DecoderLayerAtSteps(_AtSteps, Qwen3DecoderLayer):  # type: ignore[misc]
    pass


_AT_STEPS: dict[type, type] = {
    LlamaDecoderLayer: LlamaDecoderLayerAtSteps,
    MistralDecoderLayer: MistralDecoderLayerAtSteps,
    Qwen2DecoderLayer: Qwen2DecoderLayerAtSteps,
    Qwen3DecoderLayer: Qwen3DecoderLayerAtSteps,
}
