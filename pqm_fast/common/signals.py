"""SIGTERM, SIGINT and SIGUSR1: the first asks a command to end, the second ends it at once.

SIGUSR1 is what Slurm's `--signal` is often told to send. `timeout` sends each signal twice, to the command and to its
process group, and so may a shell: what comes within `BURST` counts as one.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
BURST = 0.2  # seconds


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end. Its text says what is kept; the exit code is 128 + `number`."""

    def __init__(self, number: int, kept: str = ""):
        super().__init__(kept)
        self.number = number


class Stop:
    """False until a signal has come."""

    number = 0

    def __bool__(self) -> bool:
        return bool(self.number)

    def stopped(self, kept: str) -> Stopped:
        """To be raised once everything is saved; `kept` says what, and how to go on."""
        return Stopped(self.number, kept)


@contextmanager
def stop_requested() -> Iterator[Stop]:
    """For work that must reach a good place first: `if stop: save(); raise stop.stopped("... is kept")`."""
    stop = Stop()

    def note(number: int) -> None:
        stop.number = number

    with _first(note):
        yield stop


@contextmanager
def stop_raises() -> Iterator[None]:
    """For work that may be left anywhere: Stopped is raised in it."""

    def leave(number: int) -> None:
        raise Stopped(number)

    with _first(leave):
        yield


@contextmanager
def _first(act: Callable[[int], None]) -> Iterator[None]:
    """Calls `act` with the first signal; the next one ends the process in the system's own way.

    Python takes signals in the main thread alone; elsewhere nothing changes. What is ignored stays so (a job in the
    background).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    first: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if first is None:
            first = time.monotonic()
            act(number)
        elif time.monotonic() - first > BURST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in ASKED}
    taken = [number for number, handler in before.items() if handler not in (signal.SIG_IGN, None)]
    for number in taken:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, before[number])
