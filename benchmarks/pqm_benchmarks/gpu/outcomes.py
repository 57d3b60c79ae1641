"""A pytest plugin (`-p pqm_benchmarks.gpu.outcomes`) that writes each outcome at once as a line of JSON to the file
PQM_OUTCOMES, so that a run that is cut off leaves its outcomes so far."""

import json
import os
import sys
from pathlib import Path
from typing import Any

FILE = "PQM_OUTCOMES"
MOST = 1500  # characters of a failure that are stored


def pytest_configure(config: Any) -> None:
    if hasattr(config, "workerinput"):  # a worker of xdist, whose outcomes the main process receives
        config.pluginmanager.register(_Worker())
    else:
        config.pluginmanager.register(_Outcomes(Path(os.environ[FILE])))


class _Worker:
    """Ends its process once CUDA is broken (after an illegal access, for example, every call fails). Another worker
    takes its place, and one test is lost instead of all remaining ones."""

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
        if report.when == "call" or report.outcome != "passed":  # not a set-up or tear-down that passed
            self._write(report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.outcome == "failed":
            self._write(report)

    def _write(self, report: Any) -> None:
        seconds = round(getattr(report, "duration", 0.0), 2)
        why = str(report.longrepr)[-MOST:] if report.outcome == "failed" else None
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(json.dumps([report.nodeid, report.outcome, seconds, why]) + "\n")
