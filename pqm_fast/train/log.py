"""What a run reports while it is running: lines in metrics.jsonl, messages and a progress bar."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pqm_fast.common.files import atomic_file, is_at, write_all
from pqm_fast.common.options import flat
from pqm_fast.train.folder import NotWritten, RunFolder
from pqm_fast.train.metrics_file import METRICS_FILE, START, is_metrics, read_lines
from pqm_fast.train.resume import Start
from pqm_fast.train.run import Run
from pqm_fast.train.tracking import IDENTITY_FILE, TrackedRun, Trackers, tracking_id

# the figures on the bar, with their formats and short names
BAR_FIGURES = {"loss": ".3f", "step_accuracy": ".3f", "grad_norm": ".2f", "tokens_per_second": ",.0f"}
BAR_NAMES = {"step_accuracy": "acc", "grad_norm": "gnorm", "tokens_per_second": "tok/s"}


class RunLog:
    """metrics.jsonl in the run folder, one object a line, and the same figures on a progress bar and in the trackers
    that were asked for.

    `evaluated` has the steps whose evaluations an earlier part of the run wrote into the file.
    """

    def __init__(self, folder: RunFolder, total_steps: int, start: Start, progress: bool = True):
        self.folder, self.progress, self.total_steps, self.last_step = folder, progress, total_steps, start.step
        self.trackers = Trackers(self.say)
        with folder.writing(METRICS_FILE) as path:
            damaged = self._remove_repeated(path, start, total_steps)
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed by close())
        self.bar = _StepBar(
            total=total_steps, initial=start.step, unit="step", disable=not progress, dynamic_ncols=True
        )
        if damaged:
            self.say(f"{path}: {damaged} damaged lines were taken out")

    def _remove_repeated(self, path: Path, start: Start, total_steps: int) -> int:
        """Removes damaged lines, and those of steps that a resumed run repeats. Returns how many were damaged, not
        counting one that a crash cut off (it has no line feed)."""
        lines = read_lines(path)
        kept_lines = [
            (line, row)
            for line, row in lines
            if isinstance(row, dict) and not (is_metrics(row) and start.repeats(row["kind"], row["step"], total_steps))
        ]
        self.evaluated = {row["step"] for _, row in kept_lines if is_metrics(row) and row["kind"] == "eval"}
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"".join(line.removesuffix(b"\n") + b"\n" for line, _ in kept_lines))
        return sum(row is None and line.endswith(b"\n") for line, row in lines)

    def begin(self, run: Run) -> None:
        """Writes the row of this start (every start has one, also when the run is resumed), and starts the trackers.

        Raises NotWritten, and PQMError for a tracker that does not start."""
        config = run.config
        figures = {
            "total_steps": run.total_steps,
            "time": time.time(),
            "host": socket.gethostname(),
            "device": str(run.device),
            "world": run.ranks.world,
            "parameters": sum(p.numel() for p in run.model.parameters()),
            "trajectories": len(run.training),
            "questions": run.training.num_questions,
            "steps": run.training.counts(run.training.indices)[0],
            "held_out": len(run.held_out),
            "cut": run.training.num_cut,
            "data_notes": list(run.data_notes),
        }
        self._append({"kind": START, "step": run.start.step, **figures})
        if config.track:
            with self.folder.writing(IDENTITY_FILE):
                name = tracking_id(config.folder, self.say)
            resumed_at = run.start.step if config.resume else None
            options = flat(config.to_store())
            self.trackers.start(
                config.track, TrackedRun(config.folder, name, config.track_project, options, resumed_at)
            )

    def write(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """`kind` is train, eval or skipped. Raises NotWritten; the file then ends with the previous line."""
        self._append({"kind": kind, "step": step, **figures})
        self.last_step = max(self.last_step, step)
        self.trackers.log(kind, step, figures)
        if kind == "train":
            self.bar.set_seconds_left(figures["eta_seconds"])
            shown_figures = {name: figures[name] for name in BAR_FIGURES if figures.get(name) is not None}
            self.bar.set_postfix_str(
                ", ".join(
                    f"{BAR_NAMES.get(name, name)} {value:{BAR_FIGURES[name]}}" for name, value in shown_figures.items()
                )
            )
        elif kind == "skipped":
            records = ", ".join(figures["records"][:5])
            self.say(f"step {step:,}: left out ({figures['reason']})" + (f"; records: {records}" if records else ""))
        else:
            shown_figures = {name: value for name, value in figures.items() if isinstance(value, float)}
            self.say(f"step {step}: " + ", ".join(f"{name} {value:.3f}" for name, value in shown_figures.items()))

    def _append(self, row: dict[str, Any]) -> None:
        line = json.dumps(row).encode() + b"\n"
        with self.folder.writing(METRICS_FILE) as path:
            end = os.fstat(self.file.fileno()).st_size
            try:
                write_all(self.file, line)
            except OSError:
                os.ftruncate(self.file.fileno(), end)
                raise
            if not is_at(self.file, path):
                raise NotWritten(f"{path}: was removed or replaced while the run was writing into it")

    def say(self, text: str) -> None:
        """Prints a message above the bar."""
        self.bar.write(text)

    def advance(self) -> None:
        """Moves the bar on by one step."""
        self.bar.update()

    @contextmanager
    def evaluating(self, trajectories: int) -> Iterator[tqdm]:
        """A second bar, which disappears when the evaluation is done."""
        with tqdm(
            total=trajectories,
            desc="evaluation",
            unit="traj",
            disable=not self.progress,
            dynamic_ncols=True,
            leave=False,
        ) as bar:
            yield bar

    def close(self) -> None:
        self.bar.close()
        self.file.close()
        self.trackers.close(complete=self.last_step == self.total_steps)


class _StepBar(tqdm):
    """A bar that shows the time left as the run estimates it, with the evaluations still to come."""

    end: float | None = None

    def set_seconds_left(self, seconds: float) -> None:
        self.end = time.time() + seconds

    @property
    def format_dict(self) -> dict[str, Any]:
        left = "?" if self.end is None else self.format_interval(max(0.0, self.end - time.time()))
        bar = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<" + left + ", {rate_fmt}{postfix}]"
        return {**super().format_dict, "bar_format": bar}
