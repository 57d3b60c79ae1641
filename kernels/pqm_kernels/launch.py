"""Launches at a fraction of triton's host time, which at the size of a training batch is longer than the kernels run.

At every launch triton looks at each argument to find the code that was compiled for such ones: for dtypes, for
pointers and sizes that are multiples of 16 or sizes of 1, for constants and options. Here the caller sums that up in
a key, and the code is found by it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from triton import knobs

_HERE = nullcontext()


class Launcher:
    """A kernel of `triton.jit` with its compiler options."""

    def __init__(self, kernel: Any, **options: Any):
        self.kernel = kernel
        self.options = options
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def launch(
        self, on: Tensor, key: tuple[Any, ...], grid: tuple[int, int, int], arguments: tuple[Any, ...], **options: Any
    ) -> None:
        """Launches it on the device of `on`, with `arguments` for all parameters, constants included, in their order.

        `key` tells apart what triton compiles different code for, `options`, further ones of the compiler, included.
        """
        device = on.get_device()
        compiled = self._compiled.get((device, key))
        with device_of(on):  # triton launches on the current device
            if compiled is None:
                compiled = self.kernel[grid](*arguments, **self.options, **options)
                if compiled is not None:  # as in triton's interpreter, which has no code to keep
                    self._compiled[device, key] = compiled
            elif _is_set(knobs.runtime.launch_enter_hook) or _is_set(knobs.runtime.launch_exit_hook):
                compiled[grid](*arguments)
            else:  # the same without hooks: triton takes as long again to call none
                stream = torch._C._cuda_getCurrentRawStream(device)
                compiled.run(*grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *arguments)


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes its device the current one, as `torch.cuda.device_of` does: in 1.1 us for 1.8 where it already is."""
    device = tensor.get_device()  # -1 is the CPU
    return _HERE if device < 0 or device == torch.cuda.current_device() else torch.cuda.device(device)


def _is_set(hook: Any) -> bool:
    return bool(hook.calls) if isinstance(hook, knobs.HookChain) else hook is not None


def with_options(**options: Any) -> Callable[[Any], Launcher]:
    """Decorates what `triton.jit` makes."""
    return lambda kernel: Launcher(kernel, **options)


def of_tensor(tensor: Tensor | None) -> Any:
    """What a key has of a tensor whose pointer is not specialised on its alignment."""
    return None if tensor is None else tensor.dtype


def of_aligned(tensor: Tensor | None) -> Any:
    """What a key has of a tensor that is read 16 bytes at a time where its pointer allows it."""
    return None if tensor is None else (tensor.dtype, tensor.data_ptr() % 16 == 0)
