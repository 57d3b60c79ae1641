"""Notices a rank that is gone, and ends the others: none of them waits for it forever.

A thread in each rank watches the processes of its own machine through the operating system, and the messages of the
others in the store that the ranks met in. The first rank that knows of a fault announces it there and prints it; the
others end without a message. A machine that falls silent as a whole is noticed through a sign of life that each gives
once a second: rank 0 looks at all machines, and each machine at that of rank 0.
"""

import json
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType

import torch.distributed as dist

from pqm_fast.common.signals import Stopped

SECONDS = 1.0  # between two looks at the store
SILENT_SECONDS = 120.0  # without a sign of life; a process may hold the interpreter's lock while it compiles
GRACE = 5.0  # a broken connection may be noticed before the end of the process that caused it
EXIT_SECONDS = 0.5  # for the rank with the message, before the launcher ends all of them
LEAVE_SECONDS = 5.0  # for ranks that a signal has reached too


class Watch:
    """Watches the ranks of a command, in a context. `run` is a name that no other run in the store has; `processes`
    holds (machine, process number, name of the host) of each rank."""

    def __init__(self, run: str, rank: int, processes: list[tuple[str, int, str]]):
        self.run, self.rank, self.processes = run, rank, processes
        self.machine = processes[rank][0]
        self.first_of: dict[str, int] = {}  # of each machine, its lowest rank
        for number, (machine, _, _) in enumerate(processes):
            self.first_of.setdefault(machine, number)
        self.hint: Callable[[], str] | None = None
        self._store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
        self._open = True
        self._told = False  # this rank has announced the fault
        self._signs: dict[str, tuple[bytes, float]] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="watch of the ranks", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        with self._lock:
            try:
                self._store.set(self._key(f"left/{self.rank}"), "")
            except RuntimeError:  # the process that kept the store has left
                return

    def report(self, error: BaseException) -> bool:
        """Announces an error of this rank. Returns False if another rank has announced one before, so that this one
        has nothing to say."""
        if isinstance(error, RuntimeError):  # perhaps a connection to a rank that is gone: the watch then ends us here
            time.sleep(GRACE)
        with self._lock:
            code = 128 + error.number if isinstance(error, Stopped) else 1
            return self._announce(f"{type(error).__name__}: {error}", code)

    def _key(self, name: str) -> str:
        return f"pqm-fast/{self.run}/{name}"

    def _announce(self, text: str, code: int = 1) -> bool:
        mine = json.dumps([self.rank, text, code])
        try:
            self._told = self._store.compare_set(self._key("fault"), "", mine).decode() == mine
        except RuntimeError:  # no store: each rank speaks for itself
            self._told = True
        return self._told

    def _watch(self) -> None:
        poll = select.poll()
        handles: dict[int, int] = {}
        others: dict[int, int] = {}
        for rank, (machine, process, _) in enumerate(self.processes):
            if rank != self.rank and machine == self.machine:
                try:
                    handle = os.pidfd_open(process)  # becomes readable when the process ends
                except (OSError, AttributeError):  # it has ended, or this system has no such handles
                    others[rank] = process
                else:
                    poll.register(handle, select.POLLIN)
                    handles[handle] = rank
        count = 0
        while self._open:
            ended = [rank for rank, process in others.items() if not _is_alive(process)]
            for handle, _ in poll.poll(SECONDS * 1000):
                ended.append(handles.pop(handle))
                poll.unregister(handle)
                os.close(handle)
            with self._lock:
                if not self._open or self._told:
                    return
                count += 1
                self._look(ended, count)
            others = {rank: process for rank, process in others.items() if rank not in ended}

    def _look(self, ended: list[int], count: int) -> None:
        try:
            if self._store.check([self._key("fault")]):
                self._follow()
            for rank in ended:
                if not self._store.check([self._key(f"left/{rank}")]):
                    self.end(self._gone(rank))
            if self.rank == self.first_of[self.machine]:
                self._store.set(self._key(f"alive/{self.machine}"), str(count))
                for machine in self.first_of if self.rank == 0 else [self.processes[0][0]]:
                    self._check_sign(machine)
        except RuntimeError:
            self.end("the store that the ranks met in is gone, and with it the machine or the process that kept it")

    def _check_sign(self, machine: str) -> None:
        now, key = time.monotonic(), self._key(f"alive/{machine}")
        sign = self._store.get(key) if self._store.check([key]) else b""
        if machine not in self._signs or self._signs[machine][0] != sign:
            self._signs[machine] = sign, now
        first = self.first_of[machine]
        silent = now - self._signs[machine][1] > SILENT_SECONDS
        if silent and not self._store.check([self._key(f"left/{first}")]):
            self.end(f"the machine {self.processes[first][2]} has been silent for {SILENT_SECONDS:.0f} s")

    def _gone(self, rank: int) -> str:
        _, process, host = self.processes[rank]
        return f"rank {rank} (process {process} on {host}) ended without a word; it was killed, or it crashed"

    def end(self, text: str) -> None:
        """Ends this process, with a message if no other rank has announced a fault."""
        if not self._announce(text):
            self._follow()
        print(f"pqm-fast: error: {text}; the other ranks are ended{self.kept()}", file=sys.stderr, flush=True)
        _exit(1)

    def kept(self) -> str:
        """The end of a message: what is kept and how to go on, if that is known."""
        return "" if self.hint is None else f". {self.hint()}"

    def _follow(self) -> None:
        """Ends this process without a message, because another rank has announced a fault."""
        _, _, code = json.loads(self._store.get(self._key("fault")))
        time.sleep(EXIT_SECONDS if code == 1 else LEAVE_SECONDS)
        _exit(code)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _exit(code: int) -> None:
    """Ends the process from this thread: the main one may wait for a rank that is gone."""
    sys.stdout.flush()
    os._exit(code)


class LauncherWatch:
    """Ends this process when the one that started it does: torchrun, if it is killed, leaves its processes behind.

    `among`: the watch of the ranks, once they have met; the others then hear of it.
    """

    def __init__(self) -> None:
        self.among: Watch | None = None
        self._launcher = os.getppid()
        threading.Thread(target=self._watch, name="watch of the launcher", daemon=True).start()

    def _watch(self) -> None:
        while os.getppid() == self._launcher:
            time.sleep(SECONDS)
        text = f"the process that started the ranks on {os.uname().nodename} (torchrun, say) is gone"
        if self.among is not None:
            self.among.end(text)
        print(f"pqm-fast: error: {text}", file=sys.stderr, flush=True)
        _exit(1)
