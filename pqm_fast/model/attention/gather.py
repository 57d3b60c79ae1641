"""Gathers rows of a batch in another order, or several times."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pqm_kernels import StepsByRow, gather_rows, steps_by_row


@dataclass(eq=False)  # not frozen: see HeadRows
class RowGather:
    """Gathers rows [N, ...] -> [P, ...]. Gradients are summed back in float32 and in a fixed order."""

    index: torch.Tensor  # [P] int64, the row that each place copies
    places_by_row: StepsByRow  # the inverse: the places whose gradients reach each row

    @classmethod
    def of(cls, index: np.ndarray, num_rows: int, used: np.ndarray | None = None) -> "RowGather":
        """`used` [P] bool: the places that are read; the others pass no gradient back. Default: all."""
        rows = torch.from_numpy(index)
        if used is None:
            return cls(rows, steps_by_row(rows, num_rows))
        used_places = torch.from_numpy(used.nonzero()[0])
        order, first = steps_by_row(rows[used_places], num_rows)
        return cls(rows, StepsByRow(used_places[order].int(), first))

    @classmethod
    def there_and_back(cls, index: np.ndarray, used: np.ndarray) -> tuple["RowGather", "RowGather"]:
        """Returns the gather of `index`, in which each row is `used` once, and the gather from its places back to the
        rows."""
        [used_places] = used.nonzero()
        place_of_row = np.empty_like(used_places)
        place_of_row[index[used]] = used_places
        one_per_row, one_per_used_place = np.arange(len(used_places) + 1), np.concatenate([[0], np.cumsum(used)])
        forth = cls._with_inverse(index, order=place_of_row, first=one_per_row)
        back = cls._with_inverse(place_of_row, order=index[used], first=one_per_used_place)
        return forth, back

    @classmethod
    def _with_inverse(cls, index: np.ndarray, *, order: np.ndarray, first: np.ndarray) -> "RowGather":
        return cls(torch.from_numpy(index), StepsByRow(*(torch.from_numpy(x).int() for x in (order, first))))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[N, ...] -> [P, ...]."""
        return gather_rows(x, self.index, self.places_by_row)

    def map_tensors(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "RowGather":
        return RowGather(function(self.index), StepsByRow(*map(function, self.places_by_row)))
