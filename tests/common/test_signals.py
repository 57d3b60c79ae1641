"""SIGTERM, SIGINT and SIGUSR1: the first asks a process to end, the second ends it at once."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from pqm_fast.common.signals import BURST, Stopped, stop_raises, stop_requested

WORK = """
import time
from pqm_fast.common.signals import stop_requested
with stop_requested() as stop:
    print("working", flush=True)
    while not stop:
        time.sleep(0.01)
    print("saving", flush=True)
    time.sleep(60)
"""


@pytest.mark.fault(
    "a second signal arrives while the first is being handled",
    how="SIGTERM or SIGINT twice to a process that takes a minute to end",
    lost="what had not been saved",
    recovers="the process ends at once; the next run continues from what was saved",
)
@pytest.mark.usefixtures("sigint_taken")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_second_signal_ends_at_once(number):
    child = subprocess.Popen([sys.executable, "-c", WORK], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "working\n"
    child.send_signal(number)
    child.send_signal(number)  # like `timeout`, which signals the process and its group
    assert child.stdout.readline() == "saving\n"
    time.sleep(2 * BURST)
    assert child.poll() is None
    child.send_signal(number)
    assert child.wait(10) == -number


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_previous_handlers_are_restored(number):
    def mine(*_):
        raise AssertionError

    before = signal.signal(number, mine)
    try:
        with stop_requested() as stop:
            assert not stop
            os.kill(os.getpid(), number)
            assert stop
            assert stop.stopped("saved").args == ("saved",)
            assert stop.stopped("saved").number == number
        assert signal.getsignal(number) is mine
        with pytest.raises(Stopped) as caught, stop_raises():
            os.kill(os.getpid(), number)
        assert caught.value.number == number
        assert signal.getsignal(number) is mine
        signal.signal(number, signal.SIG_IGN)
        with stop_raises(), stop_requested() as stop:
            os.kill(os.getpid(), number)
            assert not stop  # an ignored signal stays ignored
    finally:
        signal.signal(number, before)


def test_another_thread_changes_nothing():
    stops = []

    def work():
        with stop_requested() as stop, stop_raises():
            stops.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not stops[0]
