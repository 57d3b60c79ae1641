"""Lays out objects with many tensors as one buffer, which is cheap to share between processes and to pin."""

import io
import pickle
from dataclasses import dataclass, replace
from typing import Any

import torch

from pqm_fast.errors import PQMError

ALIGNMENT = 64  # bytes; more than any dtype needs


@dataclass(frozen=True)
class Flattened:
    """An object with all its tensors laid end to end in one buffer."""

    skeleton: bytes  # its pickle, with a `_Slice` of the buffer in place of each tensor
    buffer: torch.Tensor  # [bytes] uint8

    @classmethod
    def of(cls, value: Any) -> "Flattened":
        skeleton = io.BytesIO()
        pickler = _Pickler(skeleton, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dump(value)
        buffer = torch.empty(pickler.size, dtype=torch.uint8)
        for tensor_slice, tensor in zip(pickler.slices, pickler.tensors, strict=True):
            tensor_slice.view(buffer).copy_(tensor)
        return cls(skeleton.getvalue(), buffer)

    def restore(self) -> Any:
        """The object; its tensors are views of the buffer."""
        return _Unpickler(io.BytesIO(self.skeleton), self.buffer).load()

    def pin_memory(self) -> "Flattened":
        return replace(self, buffer=self.buffer.pin_memory())

    def share(self) -> "Flattened":
        """A copy in shared memory. Raises PQMError if there is no room.

        Call it before the object is sent: in the thread of `multiprocessing` that sends it, the error would be lost.
        """
        try:
            return replace(self, buffer=self.buffer.share_memory_())
        except RuntimeError as error:
            raise PQMError(
                f"data loading: {self.buffer.nbytes / 1e6:.1f} MB cannot be put into shared memory ({error}). Give a "
                "container more of it (docker run --shm-size=1g), or set fewer workers, or 0 to load in the training "
                "process"
            ) from error


@dataclass(frozen=True)
class _Slice:
    """The bytes of a tensor in a buffer."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[self.start : self.stop].view(self.dtype).view(self.shape)


class _Pickler(pickle.Pickler):
    """Collects tensors, and pickles a slice of the buffer in place of each."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.tensors: list[torch.Tensor] = []
        self.slices: list[_Slice] = []
        self.size = 0

    def persistent_id(self, obj: Any) -> _Slice | None:
        if not isinstance(obj, torch.Tensor):
            return None
        tensor_slice = _Slice(self.size, self.size + obj.nbytes, obj.dtype, tuple(obj.shape))
        self.size = -(-tensor_slice.stop // ALIGNMENT) * ALIGNMENT
        self.tensors.append(obj)
        self.slices.append(tensor_slice)
        return tensor_slice


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffer: torch.Tensor) -> None:
        super().__init__(file)
        self.buffer = buffer

    def persistent_load(self, pid: _Slice) -> torch.Tensor:
        return pid.view(self.buffer)
