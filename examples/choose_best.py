"""Score candidate solutions and choose one for each question, from Python.

    python examples/choose_best.py --model runs/mine

For large files, `pqm-fast score` does this resumably and on several GPUs, and `pqm-fast evaluate` measures the choices.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from pqm_fast import Scorer
from pqm_fast.evaluate import aggregate

DATA = Path(__file__).with_name("candidates.jsonl")


@dataclass
class Options:
    """Choose the best of several candidate solutions."""

    model: str
    """A verifier: the run folder of `pqm-fast train`."""
    data: Path = DATA
    """JSON lines with `question` and `candidates`, each a text with a step a line."""
    how: Literal["min", "last", "mean", "softmin", "prod"] = "min"
    """How the scores of the steps become the score of a solution."""


def best(scorer: Scorer, question: str, candidates: list[list[str]], how: str) -> tuple[int, list[list[float | None]]]:
    """(the number of the best candidate, the Q-value of every step of every candidate).

    A Q-value is a logit: above 0, the solution is more likely to end well than not, if the model is calibrated.
    """
    scores = scorer.score([(question, steps) for steps in candidates])
    return max(range(len(candidates)), key=lambda number: aggregate(scores[number], how)), scores


def main(options: Options) -> list[int]:
    # prefix_tree: what the candidates of a question share is computed once
    scorer = Scorer.from_pretrained(options.model, prefix_tree=True)
    chosen = []
    with open(options.data, encoding="utf-8") as lines:
        for line in map(json.loads, filter(str.strip, lines)):
            candidates = [[step for step in text.split("\n") if step.strip()] for text in line["candidates"]]
            number, scores = best(scorer, line["question"], candidates, options.how)
            print(line["question"])
            for step, q in zip(candidates[number], scores[number], strict=True):
                print("    cut off" if q is None else f"    {q:7.2f}", step)
            chosen.append(number)
    return chosen


if __name__ == "__main__":
    main(tyro.cli(Options))
