"""Turns records into the files of a TrajectoryDataset."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pqm_fast.data.dataset_writer import DatasetWriter
from pqm_fast.data.encode import Encoded, Encoder
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.questions import question_number
from pqm_fast.data.read import CHUNK, SkipSummary, chunks, read_all
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError

Judge = Callable[[Record], float]


@dataclass(frozen=True)
class Wanted:
    """What training needs to know about each solution."""

    judge: Judge | None = None
    """Tells the outcome of a record's solution: 1 right, 0 wrong, NaN unknown. It raises RecordError for a record that
    it cannot read. None: outcomes are not needed, and count as unknown."""
    labels: bool = True
    """A record without any step label is bad."""


def tokenise(folder: Path, paths: Sequence[str], options: ReadOptions, encoder: Encoder, wanted: Wanted) -> None:
    """Reads and tokenises records into a folder that exists.

    Raises PQMError for a record that cannot be used (with `options.skip_bad` it is counted in the data set's notes),
    and if none can be used.
    """
    skipped = SkipSummary()
    cut_records = cut_steps = without_label = 0
    with DatasetWriter(folder) as writer:
        for records in chunks(read_all(paths, options, skipped), CHUNK):
            for record, encoded in zip(records, encoder(records), strict=True):
                outcome, problem = _outcome(record, wanted.judge)
                problem = problem or _problem(record, encoded, wanted.labels)
                if problem is not None and not options.skip_bad:
                    raise PQMError(f"{', '.join(paths)}: {problem}") from problem
                if problem is not None:
                    skipped.add(problem.kind, str(problem))
                    continue
                assert isinstance(encoded, Encoded)
                kept_steps = len(encoded.step_tokens)
                labels = (record.labels or [None] * kept_steps)[:kept_steps]
                if wanted.labels and all(label is None for label in labels):
                    without_label += 1
                    continue
                question = question_number(record.prompt)
                writer.add(encoded, labels=labels, question=question, name=record.id, outcome=outcome)
                cut_records += encoded.steps_cut > 0
                cut_steps += encoded.steps_cut
            writer.flush()
        if not writer.count:
            raise PQMError(f"{', '.join(paths)}: no usable record. {skipped}")
        notes = []
        if skipped.total:
            notes.append(str(skipped))
        if cut_records:
            notes.append(
                f"{cut_records:,} of {writer.count:,} records are longer than {encoder.max_length} tokens: "
                f"their last {cut_steps:,} steps were cut off"
            )
        if without_label:
            notes.append(f"{without_label:,} more were left out: all their labelled steps were cut off")
        writer.finish(notes)


def _outcome(record: Record, judge: Judge | None) -> tuple[float, RecordError | None]:
    try:
        return math.nan if judge is None else judge(record), None
    except RecordError as error:
        return math.nan, error


def _problem(record: Record, encoded: Encoded | RecordError, needs_labels: bool) -> RecordError | None:
    if isinstance(encoded, RecordError):
        return encoded
    if not needs_labels or (record.labels is not None and any(label is not None for label in record.labels)):
        return None
    return RecordError(
        f"record {record.id}: no step has a label, so there is nothing to learn from it; leave it out with --skip-bad",
        kind="no labels",
    )
