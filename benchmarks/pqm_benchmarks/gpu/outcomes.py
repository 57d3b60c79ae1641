"""A plugin of pytest (`-p pqm_benchmarks.gpu.outcomes`): each outcome as a line of JSON in the file PQM_OUTCOMES, at
once, so that a run that is ended says what it had found."""

import json
import os
import sys
from pathlib import Path
from typing import Any

FILE = "PQM_OUTCOMES"
MOST = 1500  # characters of a reason


def pytest_configure(config: Any) -> None:
    if hasattr(config, "workerinput"):  # what it finds the process that started it is told too
        config.pluginmanager.register(_Worker())
    else:
        config.pluginmanager.register(_Outcomes(Path(os.environ[FILE])))


class _Worker:
    """Ends once CUDA is broken (an illegal access, say, after which every call fails): another one takes its place, and
    one test is lost instead of all that were to come."""

    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or report.outcome == "failed"

    def pytest_runtest_logfinish(self) -> None:
        torch = sys.modules.get("torch")
        if self.failed and torch is not None and torch.cuda.is_initialized():
            try:
                torch.cuda.synchronize()
            except RuntimeError:
                os._exit(1)
        self.failed = False


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
