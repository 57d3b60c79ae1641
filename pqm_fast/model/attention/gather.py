"""Rows of a batch that are read in another order, or several times."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pqm_kernels import StepsByRow, gather_rows, steps_by_row


@dataclass(eq=False)  # not frozen: see BatchPlan
class Gather:
    """What `gather_rows` is told. Gradients are summed back in float32 and in a fixed order."""

    index: torch.Tensor  # [P] int64
    by_row: StepsByRow

    @classmethod
    def of(cls, index: np.ndarray, num_rows: int, used: np.ndarray | None = None) -> "Gather":
        """`used` [P] bool: entries whose copies somebody reads; the others pass no gradient back. Default: all."""
        every = torch.from_numpy(index)
        if used is None:
            return cls(every, steps_by_row(every, num_rows))
        places = torch.from_numpy(used.nonzero()[0])
        order, first = steps_by_row(every[places], num_rows)
        return cls(every, StepsByRow(places[order].int(), first))

    @classmethod
    def there_and_back(cls, index: np.ndarray, used: np.ndarray) -> tuple["Gather", "Gather"]:
        """Of an `index` in which each row is `used` once; and back to the rows from what was gathered."""
        [place_of_used] = used.nonzero()
        place = np.empty_like(place_of_used)
        place[index[used]] = place_of_used
        of_row, of_place = np.arange(len(place) + 1), np.concatenate([[0], np.cumsum(used)])
        return cls._of(index, place, of_row), cls._of(place, index[used], of_place)

    @classmethod
    def _of(cls, index: np.ndarray, order: np.ndarray, first: np.ndarray) -> "Gather":
        return cls(torch.from_numpy(index), StepsByRow(*(torch.from_numpy(x).int() for x in (order, first))))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, ...] -> [P, ...]."""
        return gather_rows(x, self.index, self.by_row)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Gather":
        return Gather(change(self.index), StepsByRow(*map(change, self.by_row)))
