"""The ranks of a command: the processes that torchrun, or a program like it, started for it.

A command that was started alone has one rank, and none of this communicates. Every method is called by all ranks, in
the same order.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from pqm_fast.common.signals import Stopped
from pqm_fast.errors import PQMError
from pqm_fast.ranks.environment import Environment, read_environment, this_machine
from pqm_fast.ranks.meeting import meet

if TYPE_CHECKING:  # a command that needs no model does without torch
    import torch

    from pqm_fast.ranks.watch import Watch

Value = TypeVar("Value")
# Ranks wait this long for each other on the host: one of them may tokenise, or write a model. A rank that has ended is
# noticed by the watch.
HOST_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class Ranks(Environment):
    """This process among the ranks of a command, once they have joined."""

    watch: "Watch | None" = None
    hosts: Any = None
    """The process group for messages between hosts (gloo). The default group is for the device."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and messages."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits until every rank is here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier(group=self.hosts)

    def gather(self, value: Value) -> list[Value]:
        """The value of each rank, on every rank. It is pickled."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.hosts)
        return values

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` returns on rank 0, on every rank. It is pickled."""
        if self.world == 1:
            return make()
        import torch.distributed as dist

        values: list[Any] = [make() if self.first else None]
        dist.broadcast_object_list(values, src=0, group=self.hosts)
        return values[0]

    def one_by_machine(self, make: Callable[[], Value]) -> Value:
        """`make()`, which the first rank of each machine calls before the others: they find what it left on the
        disk."""
        if self.local_rank == 0:
            value = make()
            self.barrier()
            return value
        self.barrier()
        return make()

    def any(self, flag: object) -> bool:
        """Whether `flag` is true on any rank. It waits for all ranks."""
        if self.world == 1:
            return bool(flag)
        import torch
        import torch.distributed as dist

        number = torch.tensor([int(bool(flag))])
        dist.all_reduce(number, group=self.hosts)
        return bool(number.item())

    def add_up(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """Replaces `tensor`, on the device of the model, by its sum over the ranks. A GPU does not make the host
        wait."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def new_host_group(self) -> Any:
        """A second group for messages between hosts, for use by another thread; None for one rank."""
        if self.world == 1:
            return None
        import torch.distributed as dist

        return dist.new_group(backend="gloo", timeout=HOST_TIMEOUT)

    def check_device(self, device: "torch.device") -> None:
        """Raises PQMError for a device that each rank cannot have for itself."""
        if self.world == 1 or device.type != "cuda":
            return
        import torch

        if device.index is not None:
            raise PQMError(
                f"device: {device} was given to {self.world} processes; leave it out, so that each has its own"
            )
        if (gpus := torch.cuda.device_count()) < self.local_world:
            raise PQMError(f"{self.local_world} processes on a machine with {gpus} GPUs; lower --nproc-per-node")

    def say_when_lost(self, hint: Callable[[], str]) -> None:
        """If a rank is lost, the message ends with the result of `hint`: what is kept and how to go on."""
        if self.watch is not None:
            self.watch.hint = hint


ALONE = Ranks()


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Joins the ranks that the environment describes, as torchrun sets it; `ALONE` if there is none.

    If one rank raises an error, is stopped by a signal, or ends without a word, every rank ends within seconds, with
    the same exit code, and one of them says why. Raises PQMError if the environment is not complete.
    """
    about = read_environment()
    if about.world == 1:
        yield Ranks(**vars(about))
        return
    import torch
    import torch.distributed as dist

    from pqm_fast.ranks.watch import LauncherWatch, Watch

    rank, world = about.rank, about.world
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(about.local_rank % torch.cuda.device_count())
    launcher = LauncherWatch() if about.launcher is not None else None
    try:
        store, _, _ = next(dist.rendezvous("env://"))
        run, processes = meet(store, rank, world, (this_machine(), os.getpid(), os.uname().nodename))
    except RuntimeError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise PQMError(
            f"the ranks cannot meet at {address} (MASTER_ADDR, MASTER_PORT): {_first_line(error)}"
        ) from error
    try:
        # watched before they form groups: to wait for a rank that is gone would take as long as the time limit of one
        with Watch(run, rank, processes) as watch:
            if launcher is not None:
                launcher.among = watch
            try:
                backends = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
                store = dist.PrefixStore(run, store)
                dist.init_process_group(backends, store=store, rank=rank, world_size=world)
                hosts = dist.new_group(backend="gloo", timeout=HOST_TIMEOUT)
                yield Ranks(**vars(about), watch=watch, hosts=hosts)
            except Stopped as stop:
                if watch.report(stop):
                    raise
                raise SystemExit(128 + stop.number) from None
            except BaseException as error:
                if isinstance(error, SystemExit):
                    raise
                if not watch.report(error):
                    raise SystemExit(1) from None  # another rank has said why
                if isinstance(error, RuntimeError) and "gloo" in str(error):
                    raise PQMError(
                        f"rank {rank} has lost the connection to another rank, which may have been killed, or its "
                        f"machine ({_first_line(error)}){watch.kept()}"
                    ) from error
                raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
