"""Gathers rows by index; the backward sums their gradients in float32 and in a fixed order.

PyTorch's `index_select` sums them in the dtype of the rows, and on a GPU with atomics, in a different order each time.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pqm_kernels.backends import pick_backend
from pqm_kernels.row_index import StepsByRow


def gather_rows(x: Tensor, index: Tensor, by_row: StepsByRow, *, backend: str = "auto") -> Tensor:
    """`x[index]`: [P, N, ...] of x [T, N, ...], with a first derivative that repeats bit for bit.

    Nothing synchronises the device. The values of `index` and `by_row` are not checked.

    Args:
        x: [T, N, ...], of any float dtype and strides.
        index: [P] int32 or int64, rows of `x`; rows may be repeated or left out.
        by_row: `steps_by_row(index, T)`. It may leave out entries of `index` whose copies are never read; these pass no
            gradient back.
        backend: how gradients are summed: "eager" (PyTorch's `embedding_bag`), "triton" (one launch), or "auto": triton
            on CUDA if it supports the dtype, else eager.

    Raises:
        ValueError: an unknown backend, a dtype that triton does not support, or shapes and dtypes that do not fit.
    """
    order, first = by_row
    if x.dim() < 2 or len(first) != len(x) + 1 or not order.dtype == first.dtype == torch.int32:
        arguments = f"x {list(x.shape)}, order {order.dtype}, first {first.dtype} {list(first.shape)}"
        raise ValueError(f"by_row must be int32, its first [T + 1] for x [T, N, ...]; found {arguments}")
    fused = pick_backend(backend, x.device, [x.dtype]) == "triton"
    return _GatherRows.apply(x, index, order, first, fused)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, order: Tensor, first: Tensor, fused: bool) -> Tensor:
        ctx.save_for_backward(order, first)
        ctx.fused = fused
        return x.index_select(0, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        order, first = ctx.saved_tensors
        summed = (_sum_fused if ctx.fused else _sum_eager)(upstream.flatten(1), order, first)
        dx = summed.unflatten(1, upstream.shape[1:])
        return dx, None, None, None, None  # index, order, first and fused get none


def _sum_eager(source: Tensor, order: Tensor, first: Tensor) -> Tensor:
    """[T, W] from source [P, W]: row t is the sum of source[order[first[t] : first[t + 1]]]."""
    return torch.embedding_bag(source, order, first, mode=0, include_last_offset=True)[0]


def _sum_fused(source: Tensor, order: Tensor, first: Tensor) -> Tensor:
    from pqm_kernels.gather.kernel import sum_rows  # needs triton, which not every platform has

    return sum_rows(source.contiguous(), order, first)
