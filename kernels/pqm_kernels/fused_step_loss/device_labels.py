"""Triton code that reads the labels of steps, which may have any dtype."""

import triton
import triton.language as tl


@triton.jit
def load_labels(labels_ptr, step, mask):
    """Labels in float32; 0 outside the mask."""
    return tl.load(labels_ptr + step, mask=mask, other=0).to(tl.float32)


@triton.jit
def has_label(correct: tl.constexpr, labels_ptr, step, mask):
    """Whether each step is correct (or, for False, wrong); False outside the mask."""
    return mask & ((load_labels(labels_ptr, step, mask) > 0.5) == correct)


@triton.jit
def count_correct(labels_ptr, start, end, BLOCK: tl.constexpr):
    """The number of correct steps, and the index of the first wrong one, which is `end` if there is none."""
    num_correct = 0
    first_wrong = end
    for first in range(start, end, BLOCK):
        step = first + tl.arange(0, BLOCK)
        num_correct += tl.sum(has_label(True, labels_ptr, step, step < end).to(tl.int32), 0)
        wrong = has_label(False, labels_ptr, step, step < end)
        first_wrong = tl.minimum(first_wrong, tl.min(tl.where(wrong, step, end), 0))
    return num_correct, first_wrong
