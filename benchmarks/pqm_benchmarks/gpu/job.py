"""The input of a stage, and how it reports its results."""

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pqm_fast.common.files import write_json
from pqm_fast.errors import PQMError

Figures = dict[str, Any]


class Skipped(Exception):
    """The stage has nothing to do; the text is the reason."""


@dataclass
class Job:
    """The input of a stage. A stage calls `store` as soon as it has a result, because it may be ended at any time."""

    device: str
    """cuda or cpu. On a CPU the sizes are tiny, and only show that the stage works."""
    out: Path
    """Folder for files with measurements."""
    report: Path
    """File for the figures. The process that started this one reads it."""
    earlier: Path | None = None
    """Folder of an earlier run."""
    figures: Figures = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def store(self, **figures: Any) -> None:
        """Adds figures of the stage to the summary. `headline` is a line, `targets` are [target, bound, measured,
        verdict], `left_out` is {case: reason}; all others are only stored."""
        self.figures |= figures
        self._write({})

    def do(self, work: str) -> int:
        """Runs `work`, which is module:function, and stores how it ends. Returns the exit code."""
        module, _, function = work.partition(":")
        try:
            getattr(importlib.import_module(module), function)(self)
        except Skipped as reason:
            self._write({"status": "skipped", "why": str(reason)})
        except PQMError as error:
            self._write({"status": "failed", "why": str(error)})
            print(f"failed: {error}", flush=True)
            return 1
        except Exception as error:  # goes into the summary too, and is raised again for the log
            self._write({"status": "failed", "why": f"{type(error).__name__}: {error}"})
            raise
        else:
            self._write({"status": "passed", "why": None})
        return 0

    def _write(self, state: dict[str, Any]) -> None:
        write_json(self.report, {"figures": self.figures, **state})
