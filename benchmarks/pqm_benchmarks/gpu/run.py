"""Runs the stages one after the other, each in a process with a time limit. Results are kept, however a stage ends."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqm_benchmarks.gpu.stages import LISTS, MINUTES, Stage
from pqm_benchmarks.gpu.summary import text
from pqm_fast.common.environment import COMMIT
from pqm_fast.common.files import write_json
from pqm_fast.errors import PQMError

GOOD = ("passed", "skipped")
GRACE = 3.0  # seconds from SIGTERM to SIGKILL
POLL = 0.3  # seconds
Summary = list[dict[str, Any]]


@dataclass(frozen=True)
class Request:
    """The options of the command line. If `minutes` is None, it is the time that the list is made for."""

    out: Path
    minutes: float | None = None
    list: str = "first"
    stages: tuple[str, ...] = ()
    device: str = "auto"
    commit: str | None = None
    earlier: Path | None = None


def run(request: Request) -> int:
    """Writes OUT/summary.json (a list of stages: name, seconds, limit, status, why, figures), OUT/log.txt and the
    measurements, and prints a summary. Returns 0 if every stage passed or had nothing to do, otherwise 1.

    Raises:
        PQMError: an unknown stage or device, a folder that is not empty, or a time that is not positive.
    """
    from pqm_benchmarks.shared.devices import pick

    device = pick(request.device).type
    stages = _stages(request)
    usual = MINUTES[request.list][device]
    minutes = usual if request.minutes is None else request.minutes
    if not 0 < minutes < float("inf"):
        raise PQMError(f"minutes: must be positive, found {minutes}")
    if request.out.exists() and (not request.out.is_dir() or any(request.out.iterdir())):
        raise PQMError(f"{request.out}: is there already, and not an empty folder; choose another --out")
    if request.earlier is not None and not (request.earlier / "summary.json").is_file():
        raise PQMError(f"{request.earlier}: holds no summary.json of an earlier run")
    request.out.mkdir(parents=True, exist_ok=True)
    summary: Summary = [
        {"name": s.name, "seconds": 0.0, "limit": 0.0, "status": "not started", "why": None, "figures": {}}
        for s in stages
    ]
    due = time.monotonic()
    # a SIGTERM raises SystemExit here, so that the stage that is running is ended first
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with tempfile.TemporaryDirectory(prefix="pqm-gpu-") as folder:
            for stage, row in zip(stages, summary, strict=True):
                due += (stage.seconds if device == "cuda" else stage.cpu_seconds) * minutes / usual
                row["limit"] = round(due - time.monotonic(), 1)
                print(f"{stage.name}: {stage.what} (at most {row['limit']:.0f} s)", flush=True)
                _run_stage(stage, row, summary, request, device, Path(folder) / f"{stage.name}.json")
                print(f"  {row['status']} after {row['seconds']:.0f} s", flush=True)
    finally:
        signal.signal(signal.SIGTERM, before)
    print("\n" + text(summary), flush=True)
    return 0 if all(row["status"] in GOOD for row in summary) else 1


def _run_stage(
    stage: Stage, row: dict[str, Any], summary: Summary, request: Request, device: str, report: Path
) -> None:
    """Fills `row` while the stage runs, and stores the summary whenever the stage has stored something."""
    command = [sys.executable, "-u", "-m", "pqm_benchmarks.gpu", stage.work, "--device", device]
    command += ["--out", str(request.out), "--report", str(report)]
    if request.earlier is not None:
        command += ["--earlier", str(request.earlier)]
    log = request.out / "log.txt"
    row["status"], started, stored = "running", time.monotonic(), None
    with open(log, "a", encoding="utf-8") as output:
        output.write(f"\n==== {stage.name}: {stage.what}\n")
        output.flush()
        process = subprocess.Popen(command, stdout=output, stderr=output, env=_environment(request, device))
        try:
            while (exit_code := process.poll()) is None and time.monotonic() - started < row["limit"]:
                if (changed := _changed(report)) != stored:
                    stored = changed
                    _store(row, summary, request, report, started)
                time.sleep(POLL)
        finally:
            _end(process)
    _store(row, summary, request, report, started)
    if exit_code is None:
        row |= {"status": "timed out", "why": f"not finished after {row['limit']:.0f} s"}
    elif row["status"] == "running":  # it died before it could store how it ended
        row |= {"status": "failed", "why": f"ended with exit code {exit_code}: see {log.name}"}
    write_json(request.out / "summary.json", summary)


def _store(row: dict[str, Any], summary: Summary, request: Request, report: Path, started: float) -> None:
    row["seconds"] = round(time.monotonic() - started, 1)
    if report.exists():
        row |= json.loads(report.read_text(encoding="utf-8"))
    write_json(request.out / "summary.json", summary)


def _changed(report: Path) -> int | None:
    return report.stat().st_mtime_ns if report.exists() else None


def _end(process: subprocess.Popen) -> None:
    """Ends the stage, if it still runs, and everything that it has left running."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:  # no process is left, or it has no group yet
            process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):  # a process that waits for a driver may survive even SIGKILL
            process.wait(GRACE)


def _environment(request: Request, device: str) -> dict[str, str]:
    """The environment of a stage. It finds the same modules from any folder, and downloads nothing."""
    paths = [str(Path(path or ".").resolve()) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    changes = {"PYTHONPATH": os.pathsep.join(paths)} if paths else {}
    if request.commit:
        changes[COMMIT] = request.commit
    if device == "cpu":
        changes |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    return {"HF_HUB_OFFLINE": "1", **os.environ, **changes}


def _stages(request: Request) -> Sequence[Stage]:
    known = {stage.name: stage for stage in LISTS[request.list]}
    if unknown := [name for name in request.stages if name not in known]:
        raise PQMError(f"stages: expected some of {', '.join(known)}, found {', '.join(unknown)}")
    return [stage for name, stage in known.items() if not request.stages or name in request.stages]
