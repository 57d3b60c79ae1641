"""`pqm-fast score`: writes the Q-value of every step of whole files, and resumes after an interruption."""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pqm_fast.common.files import atomic_file
from pqm_fast.common.journal import Journal, stored_inputs
from pqm_fast.common.lock import locked
from pqm_fast.data.encode import Encoded, OverLong
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import CHUNK, SkipSummary, chunks, read_all
from pqm_fast.data.records import Record
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError
from pqm_fast.model.device import dtype_name, pick_device, pick_dtype
from pqm_fast.model.identity import model_key
from pqm_fast.scoring.cut_off import CutOff
from pqm_fast.scoring.options import ScoreConfig, ScoringOptions
from pqm_fast.scoring.scorer import Scorer
from pqm_fast.scoring.stored import SCORED_BY, Scores, model_name


def score(config: ScoreConfig) -> Path:
    """Scores files of any size. Returns the path written; raises PQMError for what cannot be scored."""
    with locked(Path(config.out), "score"):
        return _score(config)


def _score(config: ScoreConfig) -> Path:
    out, skipped, cut = Path(config.out), SkipSummary(), CutOff()
    config = _with_dtype(config, interrupted=stored_inputs(out))
    journal = Journal(out, _scores_depend_on(config))
    row_offsets: dict[str, int] = {}  # record id -> position of its row in the journal

    def take(offset: int, row: dict[str, Any]) -> None:
        id, scores = row["id"], row["scores"]
        if not isinstance(id, str) or not isinstance(scores, list):
            raise TypeError("not a row of scores")
        cut.add(scores)
        row_offsets[id] = offset

    journal.replay(take)
    model = model_name(config.model)
    with journal.writing():
        for record, scores in score_records(
            config.model, config.data, config.read, config.scoring, skipped, cut, done=frozenset(row_offsets)
        ):
            row_offsets[record.id] = journal.append(_row(record, scores, model))
        ids: Iterable[str] = row_offsets
        if journal.damaged_lines:  # rows that were scored again are at the end of the journal
            records = read_all(config.data, config.read, SkipSummary())
            ids = (record.id for record in records if record.id in row_offsets)
        with atomic_file(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
            file.writelines(f"{journal.text(row_offsets[id])}\n" for id in ids)
    journal.remove()
    if skipped.total:
        print(skipped)
    if cut.records:
        print(cut)
    return out


def _row(record: Record, scores: Scores, model: str) -> dict[str, Any]:
    row: dict[str, Any] = {"id": record.id, "prompt": record.prompt, "completions": record.steps}
    if record.labels is not None:
        row["labels"] = record.labels
    row |= {"scores": scores, SCORED_BY: model}
    return row | {name: value for name, value in record.extra.items() if name not in row}


def _scores_depend_on(config: ScoreConfig) -> dict[str, Any]:
    """All that the scores depend on, beyond rounding."""
    third_party = config.scoring.third_party
    return {
        "model": str(Path(config.model).resolve()),
        "weights": model_key(Path(config.model)),
        "data": [source_key(name) for name in config.data],
        "read": asdict(config.read) | {"skip_bad": None},  # a run that stopped at a bad record may resume without it
        "max_length": config.scoring.max_length,
        "dtype": config.scoring.dtype,
        "other": asdict(third_party) if third_party.is_set else None,
    }


def _with_dtype(config: ScoreConfig, interrupted: dict[str, Any] | None) -> ScoreConfig:
    """The config with a definite dtype in place of auto: that of the interrupted run if there is one."""
    dtype: Any = config.scoring.dtype
    if dtype == "auto" and interrupted is not None:
        dtype = interrupted.get("dtype", "auto")
    if dtype == "auto":
        dtype = dtype_name(pick_dtype("auto", pick_device(config.scoring.device), config.model))
    return replace(config, scoring=replace(config.scoring, dtype=dtype))


def score_records(
    model: str,
    data: Sequence[str],
    read: ReadOptions,
    options: ScoringOptions,
    skipped: SkipSummary,
    cut: CutOff,
    done: Container[str] = (),
) -> Iterator[tuple[Record, Scores]]:
    """The records of files with the scores of their steps, in order, without those whose id is in `done`. Each is
    yielded as soon as it and the records before it are scored.

    All records are read once before the model is loaded, so that a bad record is reported at once and the progress bar
    knows the total. Records that do not fit the context are counted in `cut`. Raises PQMError for what cannot be read
    or scored; with `read.skip_bad` such records are counted in `skipped`.
    """
    names = ", ".join(data)
    total = sum(1 for _ in read_all(data, read, skipped))
    scorer = Scorer.from_pretrained(
        model,
        device=options.device,
        dtype=options.dtype,
        max_length=options.max_length,
        max_tokens=options.max_tokens,
        prefix_tree=options.prefix_tree,
        attention=options.attention,
        third_party=options.third_party,
    )
    cut.limit = f"{scorer.encoder.max_length:,} tokens ({'--max-length' if options.max_length else 'the model'})"
    usable = False
    with tqdm(total=total, unit="record", disable=not options.progress) as bar:
        for records in chunks(read_all(data, read, SkipSummary()), CHUNK):
            usable_records: list[tuple[Record, Encoded | OverLong]] = []
            for record, encoded in zip(records, scorer.encoder(records), strict=True):
                if isinstance(encoded, (Encoded, OverLong)):
                    usable_records.append((record, encoded))
                elif read.skip_bad:
                    skipped.add(encoded.kind, str(encoded))
                else:
                    raise PQMError(f"{names}: {encoded}") from encoded
            usable = usable or bool(usable_records)
            bar.update(len(records) - len(usable_records))
            for record, scores in _scored_in_order(scorer, usable_records, done, bar, names):
                cut.add(scores)
                yield record, scores
    if not usable:
        raise PQMError(f"{names}: no usable record. {skipped}")


def _scored_in_order(
    scorer: Scorer, usable_records: list[tuple[Record, Encoded | OverLong]], done: Container[str], bar: tqdm, names: str
) -> Iterator[tuple[Record, Scores]]:
    """The records that are not `done`, each as soon as the records before it are scored too."""
    is_needed = [record.id not in done for record, _ in usable_records]
    scores: dict[int, Scores] = {}
    batches = scorer.score_batches(
        [(record.prompt, encoded) for record, encoded in usable_records],
        needed=is_needed.__getitem__,
        name=lambda i: f"{names}: record {usable_records[i][0].id}",
    )
    for i, (record, _) in enumerate(usable_records):
        while is_needed[i] and i not in scores:
            scores |= next(batches)
        if is_needed[i]:
            yield record, scores.pop(i)
        bar.update()
