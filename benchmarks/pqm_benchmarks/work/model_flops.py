"""Counts the matrix products of transformers' own models on the meta device, where nothing is computed."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from pqm_benchmarks.work.flops import ModelFlops

ROWS = 64  # every product except those of attention is linear in the rows


def count_model_flops(config: Any) -> ModelFlops:
    """Counts for the model that transformers makes from a config of the Llama family."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        # a copy, as transformers writes the name of the attention into the config
        model = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation=_without_attention())
        value = nn.Linear(config.hidden_size, 1)
        rows = torch.zeros(ROWS, config.hidden_size, requires_grad=True)
        ids, positions = torch.zeros(1, ROWS, dtype=torch.int64), torch.arange(ROWS)[None]
    model.train()
    backbone, last = model.model, model.model.layers[-1]

    def hidden() -> torch.Tensor:
        return backbone(input_ids=ids, use_cache=False).last_hidden_state

    # some versions of transformers compute the angles of rotary embeddings as a matrix product; it is not counted
    angles = _per_row(lambda: backbone.rotary_emb(rows[None], positions))
    layers = _per_row(lambda: hidden().sum().backward()) - angles
    # as the trainers of its time did it; nothing random is drawn, and the meta device has no state to keep
    enable = getattr(model, "activation_checkpointing_enable", None)  # the name in newer transformers
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": True, "preserve_rng_state": False})
    return ModelFlops(
        layers=layers,
        layers_again=_per_row(lambda: hidden().sum().backward()) - angles - layers,
        last_rows=_per_row(lambda: last.mlp(last.self_attn.o_proj(rows)).sum().backward()),
        value=_per_row(lambda: value(rows).sum().backward()),
        logits=_per_row(lambda: model.lm_head(rows)),
        pair=2 * config.num_attention_heads * last.self_attn.head_dim,
        key_value=2 * config.num_key_value_heads * last.self_attn.head_dim * len(backbone.layers),
        depth=len(backbone.layers),
        parameters=sum(p.numel() for p in model.parameters()),
        non_embedding=sum(p.numel() for p in backbone.parameters()) - backbone.embed_tokens.weight.numel(),
    )


def _per_row(compute: Callable[[], Any]) -> int:
    """The counted FLOPs of `compute`, divided by ROWS."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        compute()
    flops, rest = divmod(counter.get_total_flops(), ROWS)
    assert not rest, "a product that is not linear in the rows"
    return flops


def _without_attention() -> str:
    """Registers an attention that computes no product, and returns its name."""
    from transformers import AttentionInterface

    name = "pqm_counted_from_pairs"
    # key and value take part, so that their projections have a gradient
    AttentionInterface.register(
        name, lambda module, query, key, value, *_, **__: (query.transpose(1, 2) + key.sum() + value.sum(), None)
    )
    return name
