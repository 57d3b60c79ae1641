"""The width of a tile, for every kernel that reads rows."""

from functools import cache

import triton


@cache
def columns_per_tile(tile_width: int, element_size: int, width: int, stride_row: int, stride_column: int) -> int:
    """Columns of a tile of `tile_width` bytes, or the next power of two above `width` if the row has fewer columns."""
    if stride_column != 1 or stride_row % 16 or width % 16:
        tile_width //= 4  # such rows are read element by element, and a tile then takes many more registers
    return min(tile_width // element_size, max(16, triton.next_power_of_2(width)))
