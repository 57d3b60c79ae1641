"""The published computation of PQM, reimplemented: the baseline of the speed-ups.

It is the `rank` loss of the paper's main results (Eq. 10: every wrong step, with the margin zeta), computed as the
authors' code does it: a linear value head in the dtype of the model on every token, values cast to float32 and gathered
at the step tokens of padded trajectories, plain exponentials and their sums, 1e-5 in the denominator. From the second
step on, the sum over earlier correct steps in their code includes the current step, which therefore counts twice; here
it is Eq. 10, in as many operations. In its favour, tokens are packed: the published code computes the values of padding
too.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def published(
    hidden: Tensor, padded_index: Tensor, padded_labels: Tensor, weight: Tensor, bias: Tensor,
    norm_weight: Tensor | None, zeta: float, norm_eps: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(batch loss, rewards [B, L]) from `hidden` [T, D] and a head of the same dtype.

    `padded_index` [B, L] holds the row of each step, 0 in padding; `padded_labels` [B, L] holds 1, 0, and -100 in
    padding.
    """
    if norm_weight is not None:
        hidden = _rms_norm(hidden, norm_weight, norm_eps)
    values = F.linear(hidden, weight[None], bias).squeeze(-1).float()
    rewards = values.gather(0, padded_index.flatten()).view(padded_index.shape)
    return published_rank(rewards, padded_labels, zeta), rewards


def published_rank(rewards: Tensor, labels: Tensor, zeta: float) -> Tensor:
    """Mean loss over trajectories, each of which has at least one step. `rewards` and `labels` are [B, L], labels 1, 0,
    and -100 in padding. Scores above 88 overflow in float32, as in the published code."""
    correct, wrong = labels == 1, labels == 0
    positives = torch.where(correct, rewards.exp(), 0.0)
    negatives = torch.where(wrong, (rewards + zeta).exp(), 0.0).sum(-1, keepdim=True)
    one = rewards.new_ones(len(rewards), 1)
    current = torch.cat([one, torch.where(correct, positives, 1.0)], -1)
    earlier = torch.cat([torch.zeros_like(one), torch.cat([one, positives], -1).cumsum(-1)[:, :-1]], -1)
    terms = -torch.log(current / (current + earlier + negatives + 1e-5))
    counted = torch.cat([wrong.any(-1, keepdim=True), correct], -1)
    return (torch.where(counted, terms, 0.0).sum(-1) / counted.sum(-1)).mean()


def _rms_norm(hidden: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The final norm as decoders of transformers compute it: in float32, for all tokens."""
    x = hidden.float()
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return weight * x.to(hidden.dtype)
