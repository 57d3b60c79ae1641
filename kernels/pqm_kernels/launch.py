"""Launches kernels in a fraction of triton's host time, which exceeds their run time on a training batch.

At every launch triton inspects each argument to find the code that it compiled for arguments like these: their dtypes,
whether pointers and sizes are multiples of 16 or sizes are 1, constants and options. Here the caller puts all that into
a key, and the compiled code is looked up by the key.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from triton import knobs

# Compiler option: a multiply and an add become one instruction. It is set because triton's default differs by version.
FUSED_MULTIPLY_ADD = {"enable_fp_fusion": True}
# Compiler option: every operation rounds once, so that each GPU and the CPU get the same bits.
NO_FUSED_MULTIPLY_ADD = {"enable_fp_fusion": False}
_ALREADY_CURRENT = nullcontext()


class Launcher:
    """A kernel of `triton.jit` with its compiler options."""

    def __init__(self, kernel: Any, **options: Any):
        self.kernel = kernel
        self.options = options
        self._compiled: dict[tuple[Any, ...], Any] = {}

    def launch(
        self, on: Tensor, key: tuple[Any, ...], grid: tuple[int, int, int], arguments: tuple[Any, ...], **options: Any
    ) -> None:
        """Launches the kernel on the device of `on`. `arguments` has all parameters in order, constants included.

        `key` must differ wherever triton would compile different code, also for different `options`, which are
        compiler options in addition to those of the launcher.
        """
        device = on.get_device()
        compiled = self._compiled.get((device, key))
        with device_of(on):  # triton launches on the current device
            if compiled is None:
                compiled = self.kernel[grid](*arguments, **self.options, **options)
                if compiled is not None:  # triton's interpreter returns None: it has no code to keep
                    self._compiled[device, key] = compiled
            elif _is_set(knobs.runtime.launch_enter_hook) or _is_set(knobs.runtime.launch_exit_hook):
                compiled[grid](*arguments)
            else:  # the same without hooks: preparing them would double triton's time even if none is called
                stream = torch._C._cuda_getCurrentRawStream(device)
                compiled.run(*grid, stream, compiled.function, compiled.packed_metadata, None, None, None, *arguments)


def device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Makes the device of `tensor` the current one, like `torch.cuda.device_of`.

    If it already is the current one, this takes 1.1 us instead of 1.8.
    """
    device = tensor.get_device()  # -1 is the CPU
    return _ALREADY_CURRENT if device < 0 or device == torch.cuda.current_device() else torch.cuda.device(device)


def _is_set(hook: Any) -> bool:
    return bool(hook.calls) if isinstance(hook, knobs.HookChain) else hook is not None


def with_options(**options: Any) -> Callable[[Any], Launcher]:
    """Decorates a function of `triton.jit`: makes it a `Launcher` with these compiler options."""
    return lambda kernel: Launcher(kernel, **options)


def dtype_key(tensor: Tensor | None) -> Any:
    """The part of a key for a tensor whose kernel is not specialised on the alignment of its pointer."""
    return None if tensor is None else tensor.dtype


def aligned_key(tensor: Tensor | None) -> Any:
    """The part of a key for a tensor that is read 16 bytes at a time if its pointer is aligned to 16 bytes."""
    return None if tensor is None else (tensor.dtype, tensor.data_ptr() % 16 == 0)
