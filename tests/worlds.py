"""Questions of the arithmetic world in files, and runs of `sample` and `annotate` on them."""

import json
import random
from pathlib import Path
from typing import Any

from pqm_fast.arithmetic.problems import draw_problems
from pqm_fast.cli import main


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def questions(count: int, seed: int = 3) -> list[dict[str, Any]]:
    problems = draw_problems(count, random.Random(seed), shortest=5)
    return [{"id": f"q{i}", "question": p.text, "answer": str(p.answer)} for i, p in enumerate(problems)]


def with_the_fields_of_a_pool(row: dict[str, Any]) -> dict[str, Any]:
    """A question with what a pool says of solutions and of how they were made, and a field of its own, `level`."""
    of_solutions = {"correct": True, "finish_reason": "length", "scores": [1.0], "method": "x", "tokens": 1}
    of_solutions |= {"sample": 9, "model_name": "x", "policy": "x", "scored_by": "x", "tokens_written": {"x": 1}}
    return row | of_solutions | {"level": 5}


def sample(data: Path, out: Path, *policies: str, **options: Any) -> int:
    chosen = [word for policy in policies for word in ("--policy", policy)]
    quiet = [] if options.get("progress") else ["--no-progress"]
    return main(["sample", *chosen, "--data", str(data), "--out", str(out), *quiet, *_named(options)])


def annotate(data: Path, out: Path, policy: str, **options: Any) -> int:
    paths = ["--data", str(data), "--out", str(out), "--policy", policy]
    return main(["annotate", *paths, "--no-progress", *_named(options)])


def _named(options: dict[str, Any]) -> list[str]:
    named = []
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        named.append(option if value is True else f"{option}={value}")
    return named
