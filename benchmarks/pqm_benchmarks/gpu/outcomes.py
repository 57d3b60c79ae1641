"""A plugin of pytest (`-p pqm_benchmarks.gpu.outcomes`): each outcome as a line of JSON in the file PQM_OUTCOMES, at
once, so that a run that is ended says what it had found."""

import json
import os
from typing import Any

FILE = "PQM_OUTCOMES"
MOST = 1500  # characters of a reason


def pytest_runtest_logreport(report: Any) -> None:
    if report.when != "call" and report.outcome == "passed":
        return  # set-up and tear-down
    _write(report)


def pytest_collectreport(report: Any) -> None:
    if report.outcome == "failed":
        _write(report)


def _write(report: Any) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # the process that has started the workers is told too
    seconds = round(getattr(report, "duration", 0.0), 2)
    why = str(report.longrepr)[-MOST:] if report.outcome == "failed" else None
    with open(os.environ[FILE], "a", encoding="utf-8") as file:
        file.write(json.dumps([report.nodeid, report.outcome, seconds, why]) + "\n")
