"""Writes training records with their labels kept, cut after the first error, or flipped at random."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pqm_fast.common.files import atomic_file
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import first_wrong
from pqm_fast.errors import PQMError


@dataclass(frozen=True, slots=True)
class LabelKind:
    """A kind of labels to train on. `rate` is the probability of `flip`, and 0 for the others."""

    name: Literal["given", "first-error", "monte-carlo", "flip"]
    rate: float = 0.0


def parse_label_kind(text: str) -> LabelKind:
    """Parses `given`, `first-error`, `monte-carlo` or `flip:P`. Raises PQMError for anything else."""
    match text.partition(":"):
        case ("given" | "first-error" | "monte-carlo" as name, "", ""):
            return LabelKind(name)
        case ("flip", ":", probability):
            try:
                rate = float(probability)
            except ValueError:
                rate = 0.0
            if 0 < rate < 1:
                return LabelKind("flip", rate)
    raise PQMError(f"labels {text}: choose given, first-error, monte-carlo or flip:P with a probability P, as flip:0.1")


def write_relabelled(data: Sequence[str], read: ReadOptions, kind: LabelKind, out: Path) -> None:
    """Writes the labelled records of `data` with labels of this kind, which are all that a loss may know of a solution.

    Those of monte-carlo are in `data` already, made by `pqm-fast annotate`.

    first-error: the steps after the first one below 0.5 lose their labels. flip: y becomes 1 - y with probability
    `rate`, independently for each step. The steps to flip depend on the record's id and the rate alone, and so are the
    same for every loss and seed. A step without a label stays without one.

    Raises:
        PQMError: a file cannot be read, or no record has labels.
    """
    skipped, count = SkipSummary(), 0
    with atomic_file(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in read_all(data, read, skipped):
            if record.labels is None:
                continue
            labels = record.labels
            if kind.name == "first-error":
                if (wrong := first_wrong(labels)) >= 0:
                    labels = labels[: wrong + 1] + [None] * (len(labels) - wrong - 1)
            elif kind.name == "flip":
                rng = random.Random(f"{kind.rate} {record.id}")
                labels = [None if y is None else 1 - y if rng.random() < kind.rate else y for y in labels]
            row = {"id": record.id, "prompt": record.prompt, "completions": record.steps, "labels": labels}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
        if not count:
            raise PQMError(f"{', '.join(data)}: no record has labels to train on")
    if skipped.total:
        print(skipped)
