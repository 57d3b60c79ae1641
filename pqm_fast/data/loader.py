"""Makes batches ahead of their use: in worker processes, in order, and in pinned memory if a GPU copies from it.

    trajectory numbers -> worker: make, plan, flatten -> shared memory -> training process: pin, restore

A micro-batch and its attention plan are several dozen tensors. They travel as one buffer (`Flattened`), so that a batch
costs one open file and one pinned allocation, and the message in the workers' common pipe is too short to be cut off
half-way.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader

from pqm_fast.common.signals import STOP_SIGNALS
from pqm_fast.data.flat_buffer import Flattened
from pqm_fast.data.pack import PackedBatch
from pqm_fast.errors import PQMError

MOST_WORKERS = 4  # one is faster than a GPU; more help with slow disks, but hold more batches in shared memory
AHEAD = 2  # micro-batches that a worker makes before they are asked for

AttentionPlan = TypeVar("AttentionPlan")


def default_workers(device: torch.device) -> int:
    """The number of worker processes: 0 on a CPU, where loading has nothing to overlap with. For a GPU, this process's
    share of the machine's cores without the one it runs on itself, from 1 to `MOST_WORKERS`."""
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
    return min(max(share - 1, 1), MOST_WORKERS)


def load_steps(
    steps: Iterable[Sequence[np.ndarray]],
    make: Callable[[np.ndarray], PackedBatch],
    plan: Callable[[PackedBatch], AttentionPlan],
    *,
    workers: int,
    pin: bool,
) -> Generator[list[tuple[PackedBatch, AttentionPlan]], None, None]:
    """The micro-batches of each optimizer step, in order, each with its attention plan.

    `steps` yields the micro-batches of a step as trajectory numbers [B] and is read `AHEAD` * `workers` micro-batches
    ahead. `make` and `plan` run in `workers` processes, which receive both by pickle and never touch a GPU; with 0
    workers they run in this process. `pin`: all tensors are in pinned memory, so that copies to a GPU are asynchronous.

    The processes start at the first `next` and end when the generator ends or is closed. They are forked from a clean
    server, not from this process with its threads and CUDA state; a script therefore needs the usual
    `if __name__ == "__main__":`.

    Raises PQMError if `make` or `plan` does, if a process dies and if shared memory is full. Other errors of `make` and
    `plan` come with the worker's traceback in their message.
    """
    maker = _Maker(make, plan)
    if not workers:
        for step in steps:
            yield [_restored(maker.flattened(members), pin) for members in step]
        return

    sizes: deque[int] = deque()  # micro-batches in each step that has been read ahead

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
            collate_fn=_unchanged,
            worker_init_fn=_end_with_parent,
            # `_restored` pins instead. DataLoader's pinning thread lowers the number of threads of each thread that
            # starts later, also of the autograd engine's, and compiled layers are recompiled for another number.
            pin_memory=False,
            multiprocessing_context=context,
            generator=torch.Generator(),  # leaves the global one unchanged: dropout must not depend on `workers`
        )
    )
    try:
        while sizes:
            yield [_restored(_receive(batches), pin) for _ in range(sizes.popleft())]
    finally:
        # a traceback that someone keeps also keeps `batches`, and so the processes
        batches._shutdown_workers()


def _module(function: Any) -> str:
    """The module of a function, or of the function in a `functools.partial`."""
    return getattr(function, "func", function).__module__


def _restored(flattened: Flattened, pin: bool) -> Any:
    return (flattened.pin_memory() if pin else flattened).restore()


def _receive(batches: Any) -> Flattened:
    try:
        result = next(batches)
    except (RuntimeError, OSError, EOFError) as error:
        # a worker that dies while its batch is fetched breaks the connection first
        multiprocessing.connection.wait([w.sentinel for w in batches._workers], timeout=1)
        dead = [w for w in batches._workers if w.exitcode not in (None, 0)]
        if not dead:
            raise
        raise PQMError(
            f"data loading: worker process {dead[0].pid} ended with exit code {dead[0].exitcode} (-9: killed, mostly "
            "for lack of memory; -7: shared memory is full; otherwise see its own message above); set fewer workers, "
            "or 0 to load in the training process"
        ) from error
    if isinstance(result, PQMError):
        raise result
    return result


def _unchanged(x: Any) -> Any:
    return x


def _end_with_parent(worker: int) -> None:
    """Runs in a worker: makes it end when the training process does, and not before. After a signal to all processes,
    the training process can therefore still take its next step.

    Nothing tells a worker that the training process was killed: the worker's parent is the server that forked it, which
    in turn waits for its workers.
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
class _Maker(Generic[AttentionPlan]):
    """Trajectory numbers [B] -> a micro-batch with its attention plan, flattened. The data set of the DataLoader."""

    make: Callable[[np.ndarray], PackedBatch]
    plan: Callable[[PackedBatch], AttentionPlan]

    def flattened(self, members: np.ndarray) -> Flattened:
        batch = self.make(members)
        return Flattened.of((batch, self.plan(batch)))

    def __getitem__(self, members: np.ndarray) -> Flattened | PQMError:
        """Runs in a worker. Returns an error that is meant for the user: DataLoader would add to its message."""
        try:
            return self.flattened(members).share()
        except PQMError as error:
            return PQMError(str(error))
