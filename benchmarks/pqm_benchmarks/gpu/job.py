"""What a stage is given, and how it tells what it found."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqm_fast.common.files import write_json
from pqm_fast.errors import PQMError

Figures = dict[str, Any]


class Skipped(Exception):
    """There is nothing to do here; the text says why."""


@dataclass
class Job:
    """`store` as soon as there is something: a stage may be ended at any time."""

    device: str
    """cuda or cpu: on a CPU sizes are tiny, and say that it works, no more."""
    out: Path
    """For measurements in files of their own."""
    report: Path
    """Where the figures go, for the process that started this one."""
    earlier: Path | None = None
    figures: Figures = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def store(self, **figures: Any) -> None:
        """Adds to what the summary will say of the stage: `headline` is a line, `targets` are [what, bound, measured,
        verdict], `left_out` says what and why; anything else is kept."""
        self.figures |= figures
        self._write({})

    def do(self, work: str) -> int:
        """Runs `module:function`. Returns the exit code."""
        module, _, function = work.partition(":")
        try:
            getattr(importlib.import_module(module), function)(self)
        except Skipped as reason:
            self._write({"status": "skipped", "why": str(reason)})
        except PQMError as error:
            self._write({"status": "failed", "why": str(error)})
            print(f"failed: {error}", flush=True)
            return 1
        except Exception as error:  # told in the summary too, and raised again for the log
            self._write({"status": "failed", "why": f"{type(error).__name__}: {error}"})
            raise
        else:
            self._write({"status": "passed", "why": None})
        return 0

    def _write(self, state: dict[str, Any]) -> None:
        write_json(self.report, {"figures": self.figures, **state})
