"""The same records with other labels."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.errors import PQMError
from pqm_fast.files import atomic_file


@dataclass(frozen=True, slots=True)
class Labels:
    """A kind of labels; `rate` is the probability of `flip`, else 0."""

    kind: Literal["given", "monte-carlo", "flip"]
    rate: float = 0.0


def parse_labels(text: str) -> Labels:
    """`given`, `monte-carlo` or `flip:P`; PQMError for anything else."""
    if text == "given":
        return Labels("given")
    if text == "monte-carlo":
        return Labels("monte-carlo")
    kind, _, share = text.partition(":")
    try:
        rate = float(share)
    except ValueError:
        rate = -1.0
    if kind != "flip" or not 0 < rate < 1:
        raise PQMError(f"labels {text}: choose given, monte-carlo or flip:P with a probability P, such as flip:0.1")
    return Labels("flip", rate)


def write_labelled(data: Sequence[str], read: ReadOptions, rate: float, out: Path) -> None:
    """Writes the labelled records of `data` with each label y as 1 - y with probability `rate`, independently.

    A step without a label stays without one. What is flipped depends on the record's id and the rate alone, so that
    it is the same for every loss and seed. Raises PQMError for what cannot be read, or if no record has labels.
    """
    skipped, written = SkipSummary(), 0
    with atomic_file(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in read_all(data, read, skipped):
            if record.labels is None:
                continue
            rng = random.Random(f"{rate} {record.id}")
            labels = [None if y is None else 1 - y if rng.random() < rate else y for y in record.labels]
            row = {"id": record.id, "prompt": record.prompt, "completions": record.steps, "labels": labels}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
        if not written:
            raise PQMError(f"{', '.join(data)}: no record has labels to train on")
    if skipped.total:
        print(skipped)
