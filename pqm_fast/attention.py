"""How packed tokens attend: every trajectory to itself only, causally, whatever else is in the batch.

Registered with transformers as the attention implementation `pqm_packed`. The layout of the batch travels with the
forward call as the keyword `packing`. Trajectories are grouped by length and each group runs through PyTorch's SDPA
as a padded batch: with padding on the right, causality alone keeps it unseen, and no [T, T] mask is needed.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "pqm_packed"


@dataclass(frozen=True)
class Packing:
    """Where the trajectories of one packed batch lie.

    `groups`: index tensors [n, L], the token rows of n trajectories of about the same length, padded by repeating each
    one's last row. `inverse` [T]: where each token row is found in the groups laid end to end.
    """

    groups: tuple[torch.Tensor, ...]
    inverse: torch.Tensor

    @classmethod
    def from_lengths(cls, lengths: tuple[int, ...], total: int, device: torch.device | str) -> "Packing":
        """`lengths` of the trajectories in order; rows from sum(lengths) up to `total` are padding, which computes
        nothing of its own (it reads row 0's result; no loss ever reads it)."""
        starts: list[int] = [0]
        by_size: dict[int, list[int]] = {}
        for number, length in enumerate(lengths):
            starts.append(starts[-1] + length)
            by_size.setdefault((length - 1).bit_length(), []).append(number)
        groups, inverse, slots = [], torch.zeros(total, dtype=torch.int64), 0
        for _, numbers in sorted(by_size.items()):
            own = torch.tensor([lengths[i] for i in numbers])
            start = torch.tensor([starts[i] for i in numbers])
            width = int(own.max())
            column = torch.arange(width)
            rows = start[:, None] + torch.minimum(column, own[:, None] - 1)
            real = column < own[:, None]
            inverse[rows[real]] = slots + torch.arange(rows.numel()).view_as(rows)[real]
            slots += rows.numel()
            groups.append(rows.to(device, non_blocking=True))
        return cls(tuple(groups), inverse.to(device, non_blocking=True))


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """transformers' attention signature: query [1, H, T, d], key and value [1, H_kv, T, d] -> ([1, T, H, d], None)."""
    if packing is None:
        raise ValueError("packed attention was called without `packing`: this architecture does not pass it on")
    for name in ("s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"packed attention does not support {name}")
    # [T, H, d]: a trajectory is then a range of rows
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    outputs = []
    for rows in packing.groups:
        n, width = rows.shape
        flat = rows.view(-1)
        q_g, k_g, v_g = (x.index_select(0, flat).view(n, width, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        windowed = sliding_window is not None and width > sliding_window
        mask = _causal(width, sliding_window, q.device) if windowed or softcap else None
        if softcap and mask is not None:
            out = _softcapped(q_g, k_g, v_g, mask, softcap, scaling, dropout)
        else:
            out = F.scaled_dot_product_attention(
                q_g,
                k_g,
                v_g,
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=dropout,
                scale=scaling,
                enable_gqa=q.shape[1] != k.shape[1],
            )
        outputs.append(out.transpose(1, 2).reshape(n * width, q.shape[1], v.shape[2]))
    flat_out = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return flat_out.index_select(0, packing.inverse).unsqueeze(0), None


def _causal(width: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[L, L], True where a query sees a key: itself and what is before it, within the window."""
    distance = torch.arange(width, device=device)[:, None] - torch.arange(width, device=device)
    return (distance >= 0) & (distance < (window or width))


def _softcapped(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    softcap: float,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """Attention with scores capped to +-softcap by a tanh (Gemma 2), which SDPA does not have. [n, H, L, d]."""
    repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~mask, float("-inf"))
    return F.dropout(scores.float().softmax(-1).to(value.dtype), dropout) @ value


# no mask function is registered under this name, so transformers builds no mask
AttentionInterface.register(NAME, packed_attention)
