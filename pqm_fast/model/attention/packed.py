"""Packed attention as an attention implementation of transformers, registered under the name `PACKED_ATTENTION`."""

import torch
from transformers import AttentionInterface

from pqm_fast.model.attention.plan import BatchPlan

PACKED_ATTENTION = "pqm_packed"


@torch.compiler.disable  # so that compiled code around it does not depend on the layout of a batch
def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    plan: BatchPlan | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """The signature that transformers expects: query [1, H, T, d], key and value [1, H_kv, T, d] -> ([1, T, H, d],
    None).

    Raises ValueError without `plan`, and for arguments that packed attention does not support.
    """
    if plan is None:
        raise ValueError("packed attention was called without `plan`: this architecture does not pass it on")
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"packed attention does not support {name}")
    out = plan.attention.attend(
        query, key, value, scaling=scaling, dropout=dropout, window=sliding_window, softcap=softcap
    )
    return out, None


# no mask function is registered under this name, so transformers builds no mask
AttentionInterface.register(PACKED_ATTENTION, packed_attention)
