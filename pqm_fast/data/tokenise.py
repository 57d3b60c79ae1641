"""Turns labelled records into the files of a TrajectoryDataset."""

from collections.abc import Sequence
from pathlib import Path

from pqm_fast.data.dataset_writer import DatasetWriter
from pqm_fast.data.encode import Encoded, Encoder
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.questions import question_number
from pqm_fast.data.read import CHUNK, SkipSummary, chunks, read_all
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError, RecordError


def tokenise(folder: Path, paths: Sequence[str], options: ReadOptions, encoder: Encoder) -> None:
    """Reads and tokenises labelled records into a folder that exists.

    Raises PQMError for a record that cannot be used (with `options.skip_bad` it is counted in the data set's notes),
    and if none can be used.
    """
    skipped = SkipSummary()
    cut_records = cut_steps = without_label = 0
    with DatasetWriter(folder) as writer:
        for records in chunks(read_all(paths, options, skipped), CHUNK):
            for record, encoded in zip(records, encoder(records), strict=True):
                problem = _problem(record, encoded)
                if problem is not None and not options.skip_bad:
                    raise PQMError(f"{', '.join(paths)}: {problem}") from problem
                if problem is not None:
                    skipped.add(problem.kind, str(problem))
                    continue
                assert isinstance(encoded, Encoded)
                assert record.labels is not None
                labels = record.labels[: len(encoded.step_tokens)]
                if all(label is None for label in labels):
                    without_label += 1
                    continue
                writer.add(encoded, labels=labels, question=question_number(record.prompt), name=record.id)
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


def _problem(record: Record, encoded: Encoded | RecordError) -> RecordError | None:
    if isinstance(encoded, RecordError):
        return encoded
    if record.labels is not None and any(label is not None for label in record.labels):
        return None
    return RecordError(
        f"record {record.id}: no step has a label, so there is nothing to learn from it; leave it out with --skip-bad",
        kind="no labels",
    )
