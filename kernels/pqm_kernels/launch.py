"""Launches at a fraction of triton's host time, which at the size of a training batch is longer than the kernels run.

At every launch triton looks at each argument to find the code that was compiled for such ones: for dtypes, for
pointers and sizes that are multiples of 16 or sizes of 1, for constants and options. Here the caller sums that up in
a key, and the code is found by it.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor


class Launcher:
    """A kernel of `triton.jit` with its compiler options."""

    def __init__(self, kernel: Any, **options: Any):
        self.kernel = kernel
        self.options = options
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def launch(
        self, key: tuple[Any, ...], grid: tuple[int, int, int], arguments: tuple[Any, ...], **options: Any
    ) -> None:
        """Launches it on the current device, with `arguments` for all parameters, constants included, in their order.

        `key` tells apart what triton compiles different code for, but for `options`, which are further ones of the
        compiler, and devices, as code is loaded on each of them.
        """
        key = (*key, *options.values())
        compiled = self._compiled.get(key)
        if compiled is not None:
            compiled[grid](*arguments)
        else:
            compiled = self.kernel[grid](*arguments, **self.options, **options)
            if compiled is not None:  # as in triton's interpreter, which has no code to keep
                self._compiled[key] = compiled


def with_options(**options: Any) -> Callable[[Any], Launcher]:
    """Decorates what `triton.jit` makes."""
    return lambda kernel: Launcher(kernel, **options)


def of_tensor(tensor: Tensor | None) -> Any:
    """What a key has of a tensor whose pointer is not specialised on its alignment."""
    return None if tensor is None else tensor.dtype


def of_aligned(tensor: Tensor | None) -> Any:
    """What a key has of a tensor that is read 16 bytes at a time where its pointer allows it."""
    return None if tensor is None else (tensor.dtype, tensor.data_ptr() % 16 == 0)


def of_sizes(*sizes: int) -> tuple[Any, ...]:
    """What a key has of sizes and strides."""
    return tuple([1 if size == 1 else (size % 16 == 0, size < 2**31) for size in sizes])
