"""The steps of each question sorted by the prefix that they continue. The loss `sibling` compares neighbours in it."""

from typing import NamedTuple

import torch
from torch import Tensor


class Siblings(NamedTuple):
    """Position i in the order has step order[i]. Its siblings, itself included, have the positions first[i]:end[i].

    The positions of a question are the numbers of its steps.

    Attributes:
        order: [S] int32.
        first: [S] int32.
        end: [S] int32.
    """

    order: Tensor
    first: Tensor
    end: Tensor


def siblings(parent: Tensor, cu_steps: Tensor, cu_groups: Tensor) -> Siblings:
    """Sorts steps by question, then by `parent`. Runs on its device and does not synchronise it.

    Args:
        parent: [S] int32 or int64. Steps of one question with equal numbers continue the same prefix.
        cu_steps: [B + 1] int32 or int64, the steps of each trajectory, as in `step_loss`.
        cu_groups: [Q + 1] int32 or int64, the trajectories of each question, as in `step_loss`.
    """
    step = torch.arange(len(parent), device=parent.device)
    first_step = cu_steps[cu_groups[:-1].long()].long()  # of each question
    question = torch.searchsorted(first_step, step, right=True)
    by_parent = parent.sort(stable=True).indices
    order = by_parent[question[by_parent].sort(stable=True).indices]
    parent, question = parent[order], question[order]
    begins = torch.ones_like(parent, dtype=torch.bool)
    begins[1:] = (parent[1:] != parent[:-1]) | (question[1:] != question[:-1])
    set_number = begins.cumsum(0)
    first = torch.searchsorted(set_number, set_number, out_int32=True)
    end = torch.searchsorted(set_number, set_number, right=True, out_int32=True)
    return Siblings(order.int(), first, end)
