"""The Triton kernel of `pqm_kernels.AdamW`: one launch per parameter, which reads and writes each element once."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from pqm_kernels.launch import NO_FUSED_MULTIPLY_ADD, aligned_key, with_options

BLOCK = 1024
# Every operation rounds once. This costs no time, because the kernel waits for memory.
OPTIONS = {**NO_FUSED_MULTIPLY_ADD, "num_warps": 4}


@with_options(**OPTIONS)
@triton.jit
def adamw_kernel(
    weight_ptr, low_ptr, gradient_ptr, exp_avg_ptr, exp_avg_sq_ptr, skip_ptr,
    to_mean, to_square, correction, eps, rate, decay, num_elements, SPLIT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The same operations as `update` in optimizer.py. With SPLIT, bfloat16 weights come as int16. Nothing is written
    if the number at `skip_ptr` is not 0."""
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if skip_ptr is not None:  # a product keeps what the compiler knows of num_elements: accesses stay 16 bytes wide
        num_elements *= (tl.load(skip_ptr) == 0).to(tl.int32)
    valid = position < num_elements
    master = tl.load(weight_ptr + position, mask=valid)
    if SPLIT:
        low = tl.load(low_ptr + position, mask=valid).to(tl.int32)
        master = ((master.to(tl.int32) << 16) + low).to(tl.float32, bitcast=True)
    gradient = tl.load(gradient_ptr + position, mask=valid).to(tl.float32)
    mean = tl.load(exp_avg_ptr + position, mask=valid)
    square = tl.load(exp_avg_sq_ptr + position, mask=valid)
    mean += (gradient - mean) * to_mean
    square += (gradient * gradient - square) * to_square
    direction = tl.div_rn(mean, tl.sqrt_rn(square) * correction + eps)
    master -= direction * rate + master * decay
    tl.store(exp_avg_ptr + position, mean, mask=valid)
    tl.store(exp_avg_sq_ptr + position, square, mask=valid)
    if SPLIT:
        # A NaN made by a GPU has all bits set, and rounding would turn it into zero.
        bits = tl.where(master == master, master.to(tl.int32, bitcast=True), 0x7FC00000)
        high = (bits + 0x8000) >> 16
        tl.store(weight_ptr + position, high.to(tl.int16), mask=valid)
        tl.store(low_ptr + position, (bits - (high << 16)).to(tl.int16), mask=valid)
    else:
        tl.store(weight_ptr + position, master, mask=valid)


def update(
    weight: Tensor,
    low: Tensor | None,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    *numbers: float,
    skip: Tensor | None = None,
) -> None:
    """Launches the kernel on contiguous tensors; arguments are those of `pqm_kernels.adamw.optimizer.update`."""
    if weight.numel() == 0:
        return
    num_elements = weight.numel()
    tensors = (weight if low is None else weight.view(torch.int16), low, gradient, exp_avg, exp_avg_sq, skip)
    key = (*map(aligned_key, tensors), num_elements)
    arguments = (*tensors, *numbers, num_elements, low is not None, BLOCK)
    adamw_kernel.launch(weight, key, (triton.cdiv(num_elements, BLOCK), 1, 1), arguments)
    torch.autograd.graph.increment_version(weight)  # autograd does not see what the kernel writes
