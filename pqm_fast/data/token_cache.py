"""Labelled records as a data set on disk: tokenised once, kept, and checked before each use."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pqm_fast.common.digests import file_digest
from pqm_fast.common.files import atomic_folder, remove_leftovers, temporary_beside, write_json
from pqm_fast.data.dataset import COLUMNS, TrajectoryDataset
from pqm_fast.data.encode import CHUNK, Encoded, Encoder, chunks
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.questions import question_number
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import Record
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError, RecordError

LAYOUT = 3  # raise it when what is stored changes: older caches are then ignored


def load_dataset(
    paths: Sequence[str], options: ReadOptions, encoder: Encoder, cache_dir: str | None = None
) -> TrajectoryDataset:
    """Reads and tokenises labelled records, or takes what an earlier call left in the cache, if every byte of it is as
    it was written; otherwise it is made again, and `.notes` says so.

    Raises PQMError naming the record for anything that cannot be used; with `options.skip_bad` such records are
    counted in `.notes` instead. A record without any label cannot be trained on and counts as bad.
    """
    root, key = _cache_root(cache_dir), _cache_key(paths, options, encoder)
    folder = root / key
    remove_leftovers(root)
    notes = []
    if folder.exists() and (damage := _damage(folder)):
        notes.append(f"{damage}: the stored tokens are damaged and were made again")
        with temporary_beside(folder) as aside:
            os.rename(folder, aside)
    if not folder.exists():
        _make(folder, paths, options, encoder)
        if _cache_key(paths, options, encoder) != key:
            shutil.rmtree(folder)
            raise PQMError(f"{', '.join(paths)}: changed while being read; start again when it is complete")
    dataset = TrajectoryDataset(folder)
    dataset.notes = notes + dataset.notes
    return dataset


def _damage(folder: Path) -> str | None:
    """The file of a cached data set that is not as it was written, and what is wrong with it."""
    try:
        info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
        if info.pop("checksum") != _checksum_of(info):
            return f"{folder / 'info.json'}: not as it was written"
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{folder / 'info.json'}: {error}"
    for name, checksum in info["columns"].items():
        try:
            if file_digest(folder / name) != checksum:
                return f"{folder / name}: not as it was written"
        except OSError as error:
            return f"{folder / name}: {error.strerror}"
    return None


def _checksum_of(info: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _make(folder: Path, paths: Sequence[str], options: ReadOptions, encoder: Encoder) -> None:
    try:
        with atomic_folder(folder) as temporary:
            _write(temporary, paths, options, encoder)
    except OSError as error:
        if not (folder / "info.json").exists():  # else another run made the same one meanwhile
            raise PQMError(
                f"{error.filename or folder}: the tokens cannot be stored ({error.strerror}); make room there, or "
                "choose another --cache-dir"
            ) from error


def _write(folder: Path, paths: Sequence[str], options: ReadOptions, encoder: Encoder) -> None:
    skipped = SkipSummary()
    ends = {"ids_end": 0, "steps_end": 0, "names_end": 0}
    count = cut_records = cut_steps = without_label = 0
    digest = hashlib.blake2b(digest_size=16)
    checksums = {name: hashlib.sha256() for name in COLUMNS}
    with ExitStack() as stack:
        files = {name: stack.enter_context(open(folder / name, "wb")) for name in COLUMNS}
        for records in chunks(read_all(paths, options, skipped), CHUNK):
            parts: dict[str, list[np.ndarray]] = {name: [] for name in COLUMNS}
            for record, encoded in zip(records, encoder(records), strict=True):
                problem = _problem(record, encoded)
                if problem is not None and not options.skip_bad:
                    raise PQMError(f"{', '.join(paths)}: {problem}") from problem
                if problem is not None:
                    skipped.add(problem.kind, str(problem))
                    continue
                assert isinstance(encoded, Encoded)
                assert record.labels is not None
                kept = len(encoded.step_tokens)
                if all(label is None for label in record.labels[:kept]):
                    without_label += 1
                    continue
                name = np.frombuffer(record.id.encode(), dtype=np.uint8)
                ends["ids_end"] += len(encoded.input_ids)
                ends["steps_end"] += kept
                ends["names_end"] += len(name)
                parts["ids"].append(encoded.input_ids)
                parts["rows"].append(encoded.step_tokens)
                parts["labels"].append(np.array(record.labels[:kept], dtype=np.float32))  # None becomes NaN
                parts["names"].append(name)
                parts["steps_cut"].append(np.array([encoded.steps_cut]))
                parts["question"].append(np.array([question_number(record.prompt)], dtype=np.uint64))
                for column, end in ends.items():
                    parts[column].append(np.array([end]))
                count += 1
                cut_records += encoded.steps_cut > 0
                cut_steps += encoded.steps_cut
            for column, dtype in COLUMNS.items():
                if parts[column]:
                    flat = np.concatenate(parts[column]).astype(dtype).tobytes()
                    digest.update(flat)
                    checksums[column].update(flat)
                    files[column].write(flat)
    if not count:
        raise PQMError(f"{', '.join(paths)}: no usable record. {skipped}")
    notes = []
    if skipped.total:
        notes.append(str(skipped))
    if cut_records:
        notes.append(
            f"{cut_records:,} of {count:,} records are longer than {encoder.max_length} tokens: "
            f"their last {cut_steps:,} steps were cut off"
        )
    if without_label:
        notes.append(f"{without_label:,} more were left out: all their labelled steps were cut off")
    columns = {name: checksum.hexdigest() for name, checksum in checksums.items()}
    info = {"notes": notes, "digest": digest.hexdigest(), "columns": columns}
    write_json(folder / "info.json", info | {"checksum": _checksum_of(info)})


def _problem(record: Record, encoded: Encoded | RecordError) -> RecordError | None:
    if isinstance(encoded, RecordError):
        return encoded
    if record.labels is not None and any(label is not None for label in record.labels):
        return None
    return RecordError(
        f"record {record.id}: no step has a label, so there is nothing to learn from it; leave it out with --skip-bad",
        kind="no labels",
    )


def _cache_root(cache_dir: str | None) -> Path:
    if cache_dir:
        return Path(cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pqm-fast"


def _cache_key(paths: Sequence[str], options: ReadOptions, encoder: Encoder) -> str:
    """Everything that the stored tokens depend on."""
    backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
    tokenizer = backend.to_str() if backend is not None else repr(encoder.tokenizer)
    parts: list[Any] = [
        LAYOUT,
        asdict(options),
        asdict(encoder.template),
        encoder.max_length,
        encoder.bos,
        tokenizer,
    ]
    parts += [source_key(path) for path in paths]
    return hashlib.blake2b(json.dumps(parts, default=str).encode(), digest_size=16).hexdigest()
