"""Fine-tune a verifier on your own JSON lines.

    python examples/fine_tune.py --model HuggingFaceTB/SmolLM2-135M-Instruct --out runs/mine

Change `record` to what your lines look like. If they only name their fields differently, you need no script:
`pqm-fast train --field prompt=question` reads them as they are (docs: Formats).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from pqm_fast.train.config import TrainConfig
from pqm_fast.train.loop import train

DATA = Path(__file__).with_name("labelled.jsonl")


@dataclass
class Options:
    """Fine-tune a verifier on solutions with a first error."""

    model: str
    """Folder or hub id of a decoder."""
    out: Path
    """Run folder: the finished model, its metrics and checkpoints."""
    data: Path = DATA
    """JSON lines with `question`, `solution` (a step a line) and `first_error` (its number, from 1; null: none)."""
    micro_batch_tokens: int = 512
    """Tokens of a step. The 54 solutions of the example have 2,000; with thousands of solutions, take 16384 or more."""
    epochs: float = 5.0
    """Passes over the data."""
    learning_rate: float = 5e-5
    """Peak learning rate."""


def record(line: dict[str, Any]) -> dict[str, Any]:
    """One of your lines as a record: `prompt`, `completions`, and `labels` with one of true, false, null a step."""
    steps = [step for step in line["solution"].split("\n") if step.strip()]
    error = line["first_error"]
    if error is not None and not 1 <= error <= len(steps):
        raise ValueError(f"first_error is {error} in a solution of {len(steps)} steps: {line['question'][:60]!r}")
    # nothing is known about the steps behind the first error, so they get no label
    labels = [True if error is None or n < error else False if n == error else None for n in range(1, len(steps) + 1)]
    return {"prompt": line["question"], "completions": steps, "labels": labels}


def main(options: Options) -> dict[str, Any]:
    records = options.out.parent / f"{options.out.name}.records.jsonl"
    records.parent.mkdir(parents=True, exist_ok=True)
    with open(options.data, encoding="utf-8") as lines, open(records, "w", encoding="utf-8") as file:
        for line in filter(str.strip, lines):
            file.write(json.dumps(record(json.loads(line))) + "\n")
    # the lines hold several solutions of each question: bce + sibling compares them (docs: Choose a loss)
    metrics = train(
        TrainConfig(
            model=options.model,
            data=(str(records),),
            out=str(options.out),
            loss="bce",
            compare="sibling",
            compare_weight=3.0,
            prefix_tree=True,
            micro_batch_tokens=options.micro_batch_tokens,
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            eval_fraction=0.2,
        )
    )
    print(f"held-out steps: AUROC {metrics['auroc']:.3f}, loss {metrics['loss']:.3f}; the verifier is in {options.out}")
    return metrics


if __name__ == "__main__":
    main(tyro.cli(Options))
