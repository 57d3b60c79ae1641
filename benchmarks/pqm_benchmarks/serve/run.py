"""`python -m pqm_benchmarks serve`: latency and throughput of `pqm-fast serve`, one request at a time and from many
clients, and whether any answer is lost or wrong."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal
from urllib.request import urlopen

import numpy as np

from pqm_benchmarks.serve.load import Load, send
from pqm_benchmarks.shared.text import aligned, measured_on, short
from pqm_fast.common.environment import describe
from pqm_fast.common.files import write_json
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.errors import PQMError
from pqm_fast.scoring.scorer import Scorer

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.25}  # of Q-values, between a batch of the server and Scorer


@dataclass(frozen=True)
class ServeBench:
    """Measure `pqm-fast serve` on this machine, over loopback, and compare every answer with Scorer."""

    model: str
    """Folder of a checkpoint."""
    data: tuple[str, ...]
    """Records; the solutions of a question make the requests. Fewer than --requests are sent several times."""
    solutions: int = 1
    """Most solutions in a request, all of one question."""
    requests: int = 1000
    """Requests of all clients together."""
    clients: int = 32
    """Clients that ask at the same time."""
    alone: int = 200
    """Requests that are sent one at a time first."""
    gather_ms: float = 3.0
    """Of the server."""
    device: str = "auto"
    """Of the server."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the server and of Scorer."""
    prefix_tree: bool = True
    """Of the server."""
    out: str | None = None
    """JSON file to write."""
    read: ReadOptions = field(default_factory=ReadOptions)

    def __post_init__(self) -> None:
        for name in ("solutions", "requests", "clients", "alone"):
            if getattr(self, name) < 1:
                raise PQMError(f"{name}: {getattr(self, name)} was given; it must be at least 1")


def run(config: ServeBench) -> dict[str, Any]:
    """Measures, prints a table, and returns the content of the JSON. Raises PQMError for a lost or wrong answer."""
    distinct = _requests(config)
    bodies = list(islice(cycle(distinct), config.requests))
    encoded = [json.dumps(body).encode() for body in bodies]
    with _server(config) as url:
        send(url, encoded[:5], 1)  # warm-up
        phases = {"one at a time": (send(url, encoded[: config.alone], 1), 1)}
        before = _batches(url)
        phases[f"{config.clients} clients"] = (send(url, encoded, config.clients), config.clients)
        batches = _batches(url) - before
    error = _check(config, bodies, distinct, [load for load, _ in phases.values()])
    results = {
        "config": asdict(config) | {"model": Path(config.model).name, "data": [Path(d).name for d in config.data]},
        "environment": describe(),
        "distinct_requests": len(distinct),
        "steps_per_request": sum(len(s) for body in bodies for s in body["solutions"]) / len(bodies),
        "requests_per_batch": config.requests / batches,
        "largest_difference": error,
        "phases": {name: _summary(load, clients) for name, (load, clients) in phases.items()},
    }
    print(table(results))
    if config.out is not None:
        write_json(Path(config.out), results)
    return results


def table(results: dict[str, Any]) -> str:
    """The results as text."""
    rows = [["", "requests", "lost", "requests/s", "median", "95%", "99%", "longest"]]
    for name, phase in results["phases"].items():
        times = [f"{1000 * phase[key]:,.1f} ms" for key in ("median_s", "p95_s", "p99_s", "longest_s")]
        rows.append([name, f"{phase['requests']:,}", str(phase["lost"]), short(phase["requests_per_s"]), *times])
    return (
        f"{measured_on(results['environment'])}\n{aligned(rows, left=(0,))}\n"
        f"{short(results['requests_per_batch'])} requests to a batch with many clients; the largest difference from "
        f"Scorer is {results['largest_difference']:.2g}"
    )


def _requests(config: ServeBench) -> list[dict[str, Any]]:
    by_question: dict[str, list[list[str]]] = {}
    for record in read_all(config.data, config.read, SkipSummary()):
        by_question.setdefault(record.prompt, []).append(record.steps)
    requests = [
        {"question": question, "solutions": solutions[first : first + config.solutions]}
        for question, solutions in by_question.items()
        for first in range(0, len(solutions), config.solutions)
    ]
    if not requests:
        raise PQMError(f"{', '.join(config.data)}: no record")
    return requests[: config.requests]


@contextmanager
def _server(config: ServeBench) -> Iterator[str]:
    """The URL of a server in a process of its own, which is told to stop at the end."""
    command = [sys.executable, "-m", "pqm_fast", "serve", "--model", config.model, "--port", "0"]
    command += ["--gather-ms", str(config.gather_ms), "--device", config.device, "--dtype", config.dtype]
    command += ["--prefix-tree" if config.prefix_tree else "--no-prefix-tree"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if " on http" not in line:
            raise PQMError("the server did not start; its message is above")
        yield line.split(" on ")[1].strip()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _batches(url: str) -> float:
    with urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("pqm_fast_batches_total"))


def _check(
    config: ServeBench, bodies: Sequence[dict[str, Any]], distinct: list[dict[str, Any]], loads: list[Load]
) -> float:
    """The largest difference of an answer from Scorer. Raises PQMError for answers that are lost or wrong."""
    if failures := [failure for load in loads for failure in load.failures]:
        raise PQMError(f"{len(failures)} requests were lost, the first: {failures[0]}")
    scorer = Scorer.from_pretrained(config.model, device=config.device, dtype=config.dtype)
    expected = {}
    for body in distinct:
        solutions = [(body["question"], steps) for steps in body["solutions"]]
        expected[json.dumps(body)] = _flat(scorer.score(solutions))
    largest = 0.0
    for load in loads:
        for body, answer in zip(bodies, load.answers, strict=False):  # the first load has fewer
            largest = max(largest, float(np.abs(_flat(answer["scores"]) - expected[json.dumps(body)]).max()))
    if not largest <= TOLERANCE[config.dtype]:
        raise PQMError(f"an answer differs from Scorer by {largest:.2g}; {TOLERANCE[config.dtype]:g} was allowed")
    return largest


def _flat(scores: Sequence[Sequence[float | None]]) -> np.ndarray:
    return np.array([0.0 if q is None else q for steps in scores for q in steps])


def _summary(load: Load, clients: int) -> dict[str, Any]:
    median, p95, p99 = np.percentile(load.seconds, [50, 95, 99]).tolist()
    return {
        "clients": clients,
        "requests": len(load.seconds),
        "lost": len(load.failures),
        "requests_per_s": len(load.seconds) / load.wall,
        "median_s": median,
        "p95_s": p95,
        "p99_s": p99,
        "longest_s": max(load.seconds),
    }
