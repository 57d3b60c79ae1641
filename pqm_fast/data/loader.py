"""Batches ahead of their use: made in worker processes, in order, in pinned memory where a GPU copies from it.

    trajectory numbers -> worker: make, plan, flatten -> shared memory -> training process: pin, restore

A micro-batch and its attention plan are some tens of tensors. They travel as one buffer, so that a batch costs one open
file and one pinned allocation, and what goes through the workers' common pipe is too short to be cut off half-way.
"""

import io
import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from pqm_fast.common.signals import STOP_SIGNALS
from pqm_fast.data.pack import PackedBatch
from pqm_fast.errors import PQMError

MOST_WORKERS = 4  # one is faster than a GPU; more are for slow disks, and hold more batches in shared memory
AHEAD = 2  # micro-batches that a worker makes before they are asked for
ALIGNMENT = 64  # bytes; more than any dtype needs

Plan = TypeVar("Plan")


def default_workers(device: torch.device) -> int:
    """None on a CPU, which has nothing to overlap with. For a GPU this process's share of the machine's cores but the
    one it runs on itself, from 1 to `MOST_WORKERS`."""
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    return min(max(share - 1, 1), MOST_WORKERS)


def load_steps(
    steps: Iterable[Sequence[np.ndarray]],
    make: Callable[[np.ndarray], PackedBatch],
    plan: Callable[[PackedBatch], Plan],
    *,
    workers: int,
    pin: bool,
) -> Generator[list[tuple[PackedBatch, Plan]], None, None]:
    """The micro-batches of each optimizer step, in order, each with its attention plan.

    `steps` yields the micro-batches of a step as trajectory numbers [B] and is read `AHEAD` * `workers` micro-batches
    ahead. `make` and `plan` run in `workers` processes, which never touch a GPU and get both by pickle, or with 0 in
    this one. `pin`: all tensors are in pinned memory, so that copies to a GPU need not be waited for.

    Processes start at the first `next` and end when the generator ends or is closed. They are forked from a clean
    server, not from this process with its threads and CUDA state; a script therefore needs the usual
    `if __name__ == "__main__":`.

    Raises PQMError as `make` and `plan` raise it, and where a process dies or shared memory is full; whatever else they
    raise comes with the worker's traceback in its message.
    """
    maker = _Maker(make, plan)
    if not workers:
        for step in steps:
            flats = map(maker.flat, step)
            yield [(flat.pin_memory() if pin else flat).restore() for flat in flats]
        return

    sizes: deque[int] = deque()  # of the steps that have been read ahead

    def micro_batches() -> Iterator[np.ndarray]:
        for step in steps:
            sizes.append(len(step))
            yield from step

    context = multiprocessing.get_context("forkserver")
    # imported once for all workers
    context.set_forkserver_preload([__name__, *(m for m in map(_module, (make, plan)) if m != "__main__")])
    batches: Any = iter(
        DataLoader(
            maker,  # type: ignore[arg-type]  # anything with __getitem__ will do
            batch_size=None,
            sampler=micro_batches(),
            num_workers=workers,
            prefetch_factor=AHEAD,
            collate_fn=_as_it_is,
            worker_init_fn=_end_with_parent,
            # Pinned below: DataLoader's thread for it lowers the number of threads of those that start later, the
            # autograd engine's among them, and compiled layers are compiled again for another number.
            pin_memory=False,
            multiprocessing_context=context,
            generator=torch.Generator(),  # the global one is left as it is: dropout must not depend on `workers`
        )
    )
    try:
        while sizes:
            yield [_received(batches, pin) for _ in range(sizes.popleft())]
    finally:
        # an exception's traceback, while someone keeps it, keeps `batches` and so the processes
        batches._shutdown_workers()


def _module(function: Any) -> str:
    """Where a function, or that of a `functools.partial`, comes from."""
    return getattr(function, "func", function).__module__


def _received(batches: Any, pin: bool) -> Any:
    try:
        flat = next(batches)
    except (RuntimeError, OSError, EOFError) as error:
        # a worker that dies while its batch is fetched breaks the connection first
        multiprocessing.connection.wait([w.sentinel for w in batches._workers], timeout=1)
        dead = [w for w in batches._workers if w.exitcode not in (None, 0)]
        if not dead:
            raise
        raise PQMError(
            f"data loading: worker process {dead[0].pid} ended with exit code {dead[0].exitcode} (-9: killed, mostly "
            "for lack of memory; -7: shared memory is full; otherwise see its own message above); give fewer workers, "
            "or 0 to load in the training process"
        ) from error
    if isinstance(flat, PQMError):
        raise flat
    return (flat.pin_memory() if pin else flat).restore()


def _as_it_is(x: Any) -> Any:
    return x


def _end_with_parent(worker: int) -> None:
    """In a worker: it ends when the training process does, and not before, so that a signal to all of them leaves that
    one its next step.

    If the training process is killed, nobody tells it. Its own parent is the server that forked it, which in turn waits
    for its workers.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@dataclass(frozen=True)
class _Maker(Generic[Plan]):
    """What becomes of the trajectory numbers of a micro-batch."""

    make: Callable[[np.ndarray], PackedBatch]
    plan: Callable[[PackedBatch], Plan]

    def flat(self, members: np.ndarray) -> "_Flat":
        batch = self.make(members)
        return _Flat.of((batch, self.plan(batch)))

    def __getitem__(self, members: np.ndarray) -> "_Flat | PQMError":
        """In a worker. An error that is meant for the user is handed over: DataLoader would put words around it."""
        try:
            return self.flat(members).share()
        except PQMError as error:
            return PQMError(str(error))


@dataclass(frozen=True)
class _Flat:
    """An object with all its tensors laid end to end in one buffer."""

    skeleton: bytes  # its pickle, with places in the buffer instead of tensors
    buffer: torch.Tensor  # [bytes] uint8

    @classmethod
    def of(cls, value: Any) -> "_Flat":
        skeleton = io.BytesIO()
        pickler = _Pickler(skeleton, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dump(value)
        buffer = torch.empty(pickler.size, dtype=torch.uint8)
        for place, tensor in zip(pickler.places, pickler.tensors, strict=True):
            place.view(buffer).copy_(tensor)
        return cls(skeleton.getvalue(), buffer)

    def restore(self) -> Any:
        """The object; its tensors are views of the buffer."""
        return _Unpickler(io.BytesIO(self.skeleton), self.buffer).load()

    def pin_memory(self) -> "_Flat":
        return replace(self, buffer=self.buffer.pin_memory())

    def share(self) -> "_Flat":
        """Moved to shared memory here, where an error can be told: in the thread that sends it, it would be lost."""
        try:
            return replace(self, buffer=self.buffer.share_memory_())
        except RuntimeError as error:
            raise PQMError(
                f"data loading: {self.buffer.nbytes / 1e6:.1f} MB cannot be put into shared memory ({error}). Give a "
                "container more of it (docker run --shm-size=1g), or give fewer workers, or 0 to load in the training "
                "process"
            ) from error


@dataclass(frozen=True)
class _Place:
    """Where a tensor is in a buffer."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def view(self, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[self.start : self.stop].view(self.dtype).view(self.shape)


class _Pickler(pickle.Pickler):
    """Sets tensors aside."""

    def __init__(self, file: io.BytesIO, protocol: int) -> None:
        super().__init__(file, protocol)
        self.tensors: list[torch.Tensor] = []
        self.places: list[_Place] = []
        self.size = 0

    def persistent_id(self, obj: Any) -> _Place | None:
        if not isinstance(obj, torch.Tensor):
            return None
        place = _Place(self.size, self.size + obj.nbytes, obj.dtype, tuple(obj.shape))
        self.size = -(-place.stop // ALIGNMENT) * ALIGNMENT
        self.tensors.append(obj)
        self.places.append(place)
        return place


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, buffer: torch.Tensor) -> None:
        super().__init__(file)
        self.buffer = buffer

    def persistent_load(self, pid: _Place) -> torch.Tensor:
        return pid.view(self.buffer)
