"""Writes the arithmetic world as files: labelled trajectories, a Best-of-N pool and a model folder without weights."""

import json
import os
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pqm_fast.arithmetic.models import write_model
from pqm_fast.arithmetic.policies import TRAINED, Policy, make_policies
from pqm_fast.arithmetic.problems import MAX_OPERATIONS, Problem, draw_problems, step_labels
from pqm_fast.common.files import temporary_beside
from pqm_fast.errors import PQMError


@dataclass(frozen=True, slots=True)
class World:
    """The paths of a world that has been written."""

    train: Path
    """JSON lines, one trajectory each: `id`, `prompt`, `completions`, `labels`, `answer`, `policy`."""
    pool: Path
    """JSON lines, one test problem each: `id`, `question`, `answer`, and the `responses` of every policy, each with
    `text` (one step per line), `labels` of its steps, `model_name` and `correct`."""
    model: Path
    """A folder with config.json and a tokenizer, no weights."""


def write_world(
    folder: str | Path,
    *,
    problems: int = 4000,
    samples: int = 2,
    test_problems: int = 150,
    candidates: int = 16,
    seed: int = 0,
) -> World:
    """Writes `train.jsonl`, `pool.jsonl` and `model/` into `folder`; the same arguments yield the same bytes.

    The training data has `problems` x 6 policies x `samples` trajectories. The pool has `candidates` solutions by each
    of the seven policies for each of `test_problems` problems, none of which occurs in training. Existing files of
    these names are replaced, each atomically and only after all new ones are complete.

    Raises PQMError for counts below 1 or above MAX_PROBLEMS, or if `folder` is a file.
    """
    folder = Path(folder)
    for name, count in (("samples", samples), ("candidates", candidates)):
        if count < 1:
            raise PQMError(f"arithmetic world: {name} is {count}; choose at least 1")
    if folder.exists() and not folder.is_dir():
        raise PQMError(f"arithmetic world: {folder} is a file; name a folder to write into")

    # The test problems are drawn first, so that they stay the same when `problems` changes.
    test = draw_problems(test_problems, random.Random(f"{seed} test problems"), shortest=MAX_OPERATIONS)
    train = draw_problems(problems, random.Random(f"{seed} train problems"), exclude=set(test))
    policies = make_policies(seed)
    world = World(folder / "train.jsonl", folder / "pool.jsonl", folder / "model")

    with temporary_beside(folder / "world") as partial:
        partial.mkdir()
        trained = [policies[name] for name in TRAINED]
        _write_lines(partial / world.train.name, _trajectories(train, trained, samples, seed))
        _write_lines(partial / world.pool.name, _pool(test, list(policies.values()), candidates, seed))
        write_model(partial / world.model.name)
        world.model.mkdir(exist_ok=True)
        for file in sorted(path for path in partial.rglob("*") if path.is_file()):
            os.replace(file, folder / file.relative_to(partial))
    return world


def _trajectories(problems: list[Problem], policies: list[Policy], samples: int, seed: int) -> Iterator[dict[str, Any]]:
    for number, problem in enumerate(problems):
        for policy in policies:
            for sample in range(samples):
                steps = policy.solve(problem, _sample_rng(seed, policy, problem, sample))
                yield {
                    "id": f"train-{number}-{policy.name}-{sample}",
                    "prompt": problem.text,
                    "completions": [step.text for step in steps],
                    "labels": step_labels(problem, steps),
                    "answer": str(problem.answer),
                    "policy": policy.name,
                }


def _pool(problems: list[Problem], policies: list[Policy], candidates: int, seed: int) -> Iterator[dict[str, Any]]:
    for number, problem in enumerate(problems):
        responses = []
        for policy in policies:
            for sample in range(candidates):
                steps = policy.solve(problem, _sample_rng(seed, policy, problem, sample))
                responses.append(
                    {
                        "text": "\n".join(step.text for step in steps),
                        "labels": step_labels(problem, steps),
                        "model_name": policy.name,
                        "correct": steps[-1].value == problem.answer,
                    }
                )
        yield {
            "id": f"test-{number}",
            "question": problem.text,
            "answer": str(problem.answer),
            "responses": responses,
        }


def _sample_rng(seed: int, policy: Policy, problem: Problem, sample: int) -> random.Random:
    # Python hashes a string seed with SHA-512, so the numbers are the same in every process, whatever came before.
    return random.Random(f"{seed} {policy.name} {problem.text} {sample}")


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
