"""The records of a study, split once: to train on with each kind of labels, to tune on and to test on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pqm_fast.common.files import atomic_file
from pqm_fast.data.questions import question_number, split_by_question
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.probe_study.options import ProbeStudyConfig
from pqm_fast.study.relabel import parse_label_kind, write_relabelled

SIDES = ("training", "tuning", "test")


def group_of(record: Record, by: Literal["question", "id"]) -> str:
    """What a record belongs to: records of one group are on one side of the split."""
    return record.prompt if by == "question" else record.id.rpartition("/")[0] or record.id


def prepare(config: ProbeStudyConfig) -> list[str]:
    """Writes the split records. Returns what to tell the user.

    Raises PQMError if a side has no record.
    """
    skipped = SkipSummary()
    records = [r for r in read_all(config.data, config.read, skipped) if r.labels is not None]
    groups = np.array([question_number(group_of(r, config.group_by)) for r in records], dtype=np.uint64)
    others, test = split_by_question(groups, config.test_fraction, config.split_seed)
    training, tuning = (others[i] for i in split_by_question(groups[others], config.tuning_fraction, config.split_seed))
    for side, members in zip(SIDES, (training, tuning, test), strict=True):
        if not len(members):
            raise PQMError(f"{', '.join(config.data)}: no record is left for the {side} side; add records")
        write_records(split_file(config, side), [records[i] for i in members])
    source = [str(split_file(config, "training"))]
    for labels in config.labels:
        write_relabelled(source, config.read_own, parse_label_kind(labels), training_file(config, labels))
    notes = [str(skipped)] if skipped.total else []
    if config.group_by == "question":
        of_side = [{group_of(records[i], "id") for i in members} for members in (training, tuning, test)]
        if both := (of_side[0] | of_side[1]) & of_side[2]:
            notes.append(
                f"warning: {len(both):,} ids up to their last slash are on two sides of the split, such as "
                f"{min(both)}; if they are variants of one problem, split by --group-by id"
            )
    return notes


def split_file(config: ProbeStudyConfig, side: str) -> Path:
    return config.folder / "data" / f"{side}.jsonl"


def training_file(config: ProbeStudyConfig, labels: str) -> Path:
    """The records to train on with a kind of labels."""
    return config.folder / "data" / f"training-{labels.replace(':', '')}.jsonl"


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Writes records as JSON lines, with their labels and all other fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in records:
            row = {"id": record.id, "prompt": record.prompt, "completions": record.steps, "labels": record.labels}
            row |= {name: value for name, value in record.extra.items() if name not in row}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
