"""Stages for tests of `python -m pqm_benchmarks gpu`; each runs in a process of its own."""

import os
import subprocess
import sys
import time

from pqm_benchmarks.gpu.job import Skipped

from pqm_fast.common.environment import describe
from pqm_fast.errors import PQMError


def passes(job):
    print("said to the log")
    job.store(headline="half", first=1)
    job.store(headline="whole", device=job.device, commit=describe()["commit"], earlier=str(job.earlier))


def is_wrong(job):
    job.store(left_out={"another": "out of memory"}, targets=[["speed", ">= 2x", "1x", "NOT MET"]])
    raise PQMError("the op\nis wrong")


def breaks(job):
    raise ValueError("unexpected")


def dies(job):
    job.store(headline="so far")
    os._exit(7)


def has_nothing_to_do(job):
    raise Skipped("no tool")


def hangs(job):
    """And so does what it has started."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    job.store(headline="before it hung", child=child.pid)
    time.sleep(600)


def hangs_on(job):
    """Whatever it is told."""
    import signal

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    job.store(headline="will not end")
    time.sleep(600)
