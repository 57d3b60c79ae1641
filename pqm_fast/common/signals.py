"""SIGTERM, SIGINT and SIGUSR1: the first signal asks a command to end, the second ends it at once.

SIGUSR1 is a common choice for Slurm's `--signal`. `timeout` sends each signal twice, to the command and to its process
group, and a shell may do the same: signals within `BURST` seconds count as one.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
BURST = 0.2  # seconds


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end. The text names what is kept; the exit code is 128 + `number`."""

    def __init__(self, number: int, kept: str = ""):
        super().__init__(kept)
        self.number = number


class StopRequest:
    """False until a signal arrives."""

    number = 0

    def __bool__(self) -> bool:
        return bool(self.number)

    def stopped(self, kept: str) -> Stopped:
        """The error to raise once everything is saved; `kept` says what is kept and how to continue."""
        return Stopped(self.number, kept)


@contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """For work that must reach a safe point first: `if stop: save(); raise stop.stopped("... is kept")`."""
    stop = StopRequest()

    def note(number: int) -> None:
        stop.number = number

    with _on_first_signal(note):
        yield stop


@contextmanager
def stop_raises() -> Iterator[None]:
    """For work that may stop anywhere: raises Stopped at the first signal."""

    def leave(number: int) -> None:
        raise Stopped(number)

    with _on_first_signal(leave):
        yield


@contextmanager
def _on_first_signal(act: Callable[[int], None]) -> Iterator[None]:
    """Calls `act` with the number of the first signal; the next one ends the process by the system's default action.

    Python handles signals only in the main thread; in others this does nothing. Signals that are ignored stay ignored
    (in background jobs).
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    first_time: float | None = None

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first_time
        if first_time is None:
            first_time = time.monotonic()
            act(number)
        elif time.monotonic() - first_time > BURST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    previous: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    handled = [number for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)]
    for number in handled:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, previous[number])
