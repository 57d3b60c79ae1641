"""Runs the project's tests on the card, in several processes at once."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pqm_benchmarks.gpu.job import Job, Skipped
from pqm_benchmarks.gpu.outcomes import FILE
from pqm_fast.errors import PQMError

ROOT = Path(__file__).parents[3]
KERNELS = (["tests/kernels", "-m", "not aot and not slow"], 8)
"""The arguments of pytest, and the number of processes."""
NEED_GPU = (["tests/model", "tests/train", "tests/data", "-m", "gpu"], 4)
ON_CPU = ((["tests/kernels/test_reference.py", "-k", "no_steps or flat_floor"], 0), (["tests/data/test_pack.py"], 0))
SLOWEST = 5
POLL = 0.5


def everything(job: Job) -> None:
    """Runs the tests of the kernels, and those of the model, training and data that need a GPU.

    Raises:
        PQMError: a test fails, or none runs.
    """
    _run(job, (KERNELS, NEED_GPU) if job.on_gpu else ON_CPU)


def again(job: Job) -> None:
    """Runs again the tests that failed in the run in `job.earlier`."""
    if job.earlier is None:
        raise Skipped("no --earlier was given")
    rows = json.loads((job.earlier / "summary.json").read_text(encoding="utf-8"))
    failed = [test for row in rows for test in row["figures"].get("failures", {})]
    if not failed:
        raise Skipped("no test had failed")
    _run(job, ((failed, 4),))


def _run(job: Job, runs: Sequence[tuple[list[str], int]]) -> None:
    """Stores the outcomes so far at short intervals. The output of pytest goes to the log."""
    if not (ROOT / "tests").is_dir():
        raise Skipped("there are no tests here: start it in a checkout")
    if importlib.util.find_spec("pytest") is None:
        raise Skipped("pytest is not installed")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.jsonl" for i in range(len(runs))]
        started = [_start(*run, file) for run, file in zip(runs, files, strict=True)]
        while True:
            codes = [process.poll() for process in started]
            figures = _figures(list(_outcomes(files)))
            job.store(**figures, unfinished=codes.count(None))
            if None not in codes:
                break
            time.sleep(POLL)
    # exit codes of pytest: 0 if all passed, 1 if some failed; with any other code it did not run properly
    problems = [f"pytest ended with exit code {code}" for code in codes if code not in (0, 1)]
    if figures["failed"]:
        problems.insert(0, f"{figures['failed']} failed")
    if problems or not figures["passed"]:
        raise PQMError("; ".join(problems) or "no test ran")


def _start(arguments: list[str], processes: int, file: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "pytest", "-p", "pqm_benchmarks.gpu.outcomes", "-p", "no:cacheprovider"]
    command += ["--tb=short", *arguments]
    if processes and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(processes), "--dist", "worksteal"]  # with other modes a crash may end the run
    # the processes share the processor, so each has one thread to compute and one to compile
    environment = os.environ | {FILE: str(file), "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment)


def _outcomes(files: Sequence[Path]) -> Iterator[list[Any]]:
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines(True) if file.exists() else ():
            if line.endswith("\n"):  # the last line may still be incomplete
                yield json.loads(line)


def _figures(outcomes: list[list[Any]]) -> dict[str, Any]:
    counts = {name: sum(outcome == name for _, outcome, _, _ in outcomes) for name in ("passed", "failed", "skipped")}
    slowest = sorted(outcomes, key=lambda outcome: -outcome[2])[:SLOWEST]
    return {
        "headline": ", ".join(f"{count:,} {name}" for name, count in counts.items()),
        **counts,
        "failures": {test: why for test, outcome, _, why in outcomes if outcome == "failed"},
        "slowest": {test: seconds for test, _, seconds, _ in slowest},
    }
