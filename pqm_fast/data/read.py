"""Reads `Record`s from sources, one at a time. A bad record is an error that names it, or is skipped and counted."""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from pqm_fast.data.checks import FormatError, check_values, explicit_id, show
from pqm_fast.data.formats import FORMATS, FormatName, ReadOptions, recognise
from pqm_fast.data.records import Record
from pqm_fast.data.sources import Place, expand, open_source
from pqm_fast.errors import PQMError

StrPath = str | os.PathLike[str]

DEFAULT_OPTIONS = ReadOptions()
CHUNK = 2000  # records to tokenise at a time: enough to keep every core busy, and little memory


class BadRecord(PQMError):
    """A raw record that cannot be used: "FILE, line N (record ID): what is wrong; what to do".

    `path` and `line` (or the number of the record) say where it is; `kind` groups records with the same fault.
    """

    def __init__(self, place: Place, error: FormatError, id: str | None = None) -> None:
        record_name = "" if id is None else f" (record {id})"
        super().__init__(f"{place}{record_name}: {error}")
        self.path, _, self.line = place
        self.reason = str(error)
        self.kind = error.kind


@dataclass
class SkipSummary:
    """Skipped records: how many with each kind of fault, and the messages of the first three."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def add(self, kind: str, message: str) -> None:
        self.counts[kind] += 1
        if len(self.examples) < 3:
            self.examples.append(message)

    def add_all(self, other: "SkipSummary") -> None:
        for kind, count in other.counts.items():
            self.counts[kind] += count
        self.examples = [*self.examples, *other.examples][:3]

    @property
    def total(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        if not self.total:
            return "no bad records"
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.counts.most_common())
        noun = "record" if self.total == 1 else "records"
        return f"skipped {self.total:,} bad {noun} ({kinds}), for example: {' | '.join(self.examples)}"


def read_records(
    path: StrPath,
    format: FormatName = "auto",
    *,
    options: ReadOptions = DEFAULT_OPTIONS,
    skipped: SkipSummary | None = None,
) -> Iterator[Record]:
    """The records of one source, read lazily.

    Args:
        path: a file with JSON lines, a JSON list or one JSON object (all may be gzipped), or Parquet; a
            folder of such files, or a pattern for them (`data/*.jsonl`); a folder that `datasets` saved; or a
            hub data set, `org/name`, if there is no such path. The last two take a split: `path:split`.
            A JSON list is held in memory as a whole; everything else is read as a stream.
        format: overrides `options.format` unless it is "auto".
        options: how to read, see `ReadOptions`.
        skipped: collects what `options.skip_bad` leaves out; without it, a warning at the end sums that up.

    Raises:
        BadRecord: a record that cannot be used, unless `options.skip_bad`.
        PQMError: a source that cannot be read, or that holds no usable record at all.
    """
    if format != "auto":
        options = replace(options, format=format)
    return read_all([path], options, skipped)


def read_all(
    paths: Iterable[StrPath], options: ReadOptions = DEFAULT_OPTIONS, skipped: SkipSummary | None = None
) -> Iterator[Record]:
    """The records of several sources in turn, as in `read_records`. Ids are unique over all of them."""
    summary = SkipSummary() if skipped is None else skipped
    place_of_id: dict[str, Place] = {}
    stems: set[str] = set()
    if not (paths := list(paths)):
        raise PQMError("data: no source is named; name a file, a folder, a pattern or a hub data set")
    for source in expand(os.fspath(path) for path in paths):
        yield from _read_source(source, options, summary, place_of_id, stems)
    if skipped is None and summary.total:
        warnings.warn(str(summary), stacklevel=2)


def chunks(records: Iterator[Record], size: int) -> Iterator[list[Record]]:
    """The records in lists of `size`; the last list may be shorter."""
    while chunk := list(islice(records, size)):
        yield chunk


def _read_source(
    source: str, options: ReadOptions, summary: SkipSummary, place_of_id: dict[str, Place], stems: set[str]
) -> Iterator[Record]:
    stem, raws = open_source(source)
    if stem in stems:  # two folders may hold files of one name; ids with the whole path differ
        stem = source
    stems.add(stem)
    format: str = options.format
    first_bad: BadRecord | None = None
    usable = False
    for place, raw in raws:
        id = None
        try:
            raw = options.renamed(_checked_object(raw))
            id = explicit_id(raw)
            check_values(raw)
            if format == "auto":
                format = recognise(raw)
            elif options.format == "auto":
                _check_same_format(raw, format)
            records = FORMATS[format].parse(raw, id or f"{stem}:{place.number}", options)
            _take_ids(records, place, place_of_id)
        except FormatError as error:
            bad = BadRecord(place, error, id)
            if not options.skip_bad:
                raise bad from None
            summary.add(bad.kind, str(bad))
            first_bad = first_bad or bad
        else:
            usable = True
            yield from records
    if not usable:
        reason = f"all are bad, the first: {first_bad}" if first_bad else "it is empty; give one with records"
        raise PQMError(f"{source}: no usable record: {reason}")


def _checked_object(raw: Any) -> dict[str, Any]:
    if isinstance(raw, FormatError):
        raise raw
    if not isinstance(raw, dict):
        raise FormatError("not an object", f"{show(raw)} is not a JSON object; give one object per record")
    return raw


def _check_same_format(raw: dict[str, Any], format: str) -> None:
    expected = FORMATS[format]
    if not expected.fits(raw):
        raise FormatError(
            "another format",
            f"its fields ({', '.join(raw) or 'none'}) do not fit {format} ({expected}), "
            "which is the format of its first record; add what is missing, or keep one format per file",
        )


def _take_ids(records: list[Record], place: Place, place_of_id: dict[str, Place]) -> None:
    for record in records:
        if record.id in place_of_id:
            raise FormatError(
                "duplicate id", f"the id {record.id} is taken by {place_of_id[record.id]}; give each record its own"
            )
    place_of_id.update((record.id, place) for record in records)
