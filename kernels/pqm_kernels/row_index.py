"""The inverse of `step_index`: the steps that read each row of `hidden`. The backward sums their gradients with it."""

from typing import NamedTuple

import torch
from torch import Tensor


class StepsByRow(NamedTuple):
    """The steps of row r are order[first[r] : first[r + 1]], in ascending order.

    Attributes:
        order: [S] int32, the steps sorted by their row.
        first: [T + 1] int32.
    """

    order: Tensor
    first: Tensor


def steps_by_row(step_index: Tensor, num_rows: int) -> StepsByRow:
    """Inverts `step_index` [S], whose values lie in 0..num_rows - 1. Runs on its device and does not synchronise it.

    The sort is stable, so that sums over the steps of a row always have the same order.
    """
    rows, order = step_index.sort(stable=True)
    every_row = torch.arange(num_rows + 1, device=rows.device, dtype=rows.dtype)
    return StepsByRow(order.int(), torch.searchsorted(rows, every_row, out_int32=True))
