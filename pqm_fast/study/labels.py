"""The same records with other labels."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pqm_fast.common.files import atomic_file
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.errors import PQMError


@dataclass(frozen=True, slots=True)
class Labels:
    """A kind of labels; `rate` is the probability of `flip`, else 0."""

    kind: Literal["given", "first-error", "monte-carlo", "flip"]
    rate: float = 0.0


def parse_labels(text: str) -> Labels:
    """`given`, `first-error`, `monte-carlo` or `flip:P`; PQMError for anything else."""
    match text.partition(":"):
        case ("given" | "first-error" | "monte-carlo" as kind, "", ""):
            return Labels(kind)
        case ("flip", ":", share):
            try:
                rate = float(share)
            except ValueError:
                rate = 0.0
            if 0 < rate < 1:
                return Labels("flip", rate)
    raise PQMError(f"labels {text}: choose given, first-error, monte-carlo or flip:P with a probability P, as flip:0.1")


def write_labelled(data: Sequence[str], read: ReadOptions, labels: Labels, out: Path) -> None:
    """Writes the labelled records of `data` with labels of this kind (`monte-carlo` is not made here).

    first-error: steps after the first one below 0.5 lose their labels. flip: y becomes 1 - y with probability `rate`,
    independently; which ones depends on the record's id and the rate alone, so that it is the same for every loss and
    seed. A step without a label stays without one. Raises PQMError for what cannot be read, or if no record has labels.
    """
    skipped, written = SkipSummary(), 0
    with atomic_file(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in read_all(data, read, skipped):
            if record.labels is None:
                continue
            own = record.labels
            if labels.kind == "first-error":
                end = next((t for t, y in enumerate(own, 1) if y is not None and y < 0.5), len(own))
                own = own[:end] + [None] * (len(own) - end)
            elif labels.kind == "flip":
                rng = random.Random(f"{labels.rate} {record.id}")
                own = [None if y is None else 1 - y if rng.random() < labels.rate else y for y in own]
            row = {"id": record.id, "prompt": record.prompt, "completions": record.steps, "labels": own}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
        if not written:
            raise PQMError(f"{', '.join(data)}: no record has labels to train on")
    if skipped.total:
        print(skipped)
