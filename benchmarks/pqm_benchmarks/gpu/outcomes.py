"""A plugin of pytest (`-p pqm_benchmarks.gpu.outcomes`): each outcome as a line of JSON in the file PQM_OUTCOMES, at
once, so that a run that is ended says what it had found."""

import json
import os
from pathlib import Path
from typing import Any

FILE = "PQM_OUTCOMES"
MOST = 1500  # characters of a reason


def pytest_configure(config: Any) -> None:
    if not hasattr(config, "workerinput"):  # what a worker finds the process that started it is told too
        config.pluginmanager.register(_Outcomes(Path(os.environ[FILE])))


class _Outcomes:
    def __init__(self, file: Path):
        self.file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":  # else it is set-up or tear-down, of no interest
            self._write(report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self._write(report)

    def _write(self, report: Any) -> None:
        seconds = round(getattr(report, "duration", 0.0), 2)
        why = str(report.longrepr)[-MOST:] if report.outcome == "failed" else None
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps([report.nodeid, report.outcome, seconds, why]) + "\n")
